"""Building a graph: a lattice's function runs once, and its electrons are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chelate.bundle import Bundle
from chelate.client.codec import load_value, pickle_lattice, pickle_portable
from chelate.client.frames import raising_line
from chelate.client.placeholder import Placeholder, state_of
from chelate.client.recorder import Build, active_build
from chelate.client.signature import Parameters
from chelate.client.snapshot import snapshot
from chelate.errors import BuildError, ChelateError, GraphError
from chelate.graph import Graph, Kind

if TYPE_CHECKING:
    from chelate.client.lattice import Lattice

__all__ = ["active_build", "build_bundle", "build_in_worker", "task_names", "wait_for"]


def build_bundle(
    lattice: Lattice,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    defaults: Mapping[str, Any] | None = None,
    replacements: Mapping[str, Any] | None = None,
    code: str | None = None,
) -> Bundle:
    """What ``Lattice.build`` gives; see there. ``code`` is the digest of a stored snapshot that
    this process runs; without one, a snapshot is taken.
    """
    from chelate.client.electron import Electron

    function = lattice.workflow_function
    Parameters(function, lattice.name).bind(
        args, kwargs, who=f"The input of the lattice {lattice.name!r}"
    )
    targets = {
        name: target if isinstance(target, Electron) else Electron(target)
        for name, target in (replacements or {}).items()
    }
    build = Build(lattice.name, lattice.effective_options(defaults), targets)
    bundle = Bundle(build.graph, build.blobs)
    bundle.lattice = bundle.add(pickle_lattice(lattice))
    # Before the function runs, since it may change its arguments.
    what = f"The input of the lattice {lattice.name!r}"
    bundle.inputs = bundle.add(pickle_portable((args, kwargs), what))
    with build.active():
        try:
            value = function(*args, **kwargs)
        except ChelateError:
            raise
        except Exception as error:
            line = raising_line(error, function)
            raise BuildError(
                f"The lattice {lattice.name!r} raised while its graph was built"
                f"{f', at {line}' if line else ''}: {type(error).__name__}: {error}"
            ) from error
        build.finish(value)
    # After the function ran, since it may import.
    archive = snapshot() if code is None else None
    build.graph.code = code if archive is None else bundle.add(archive)
    return bundle


def build_in_worker(
    lattice_pickle: bytes,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
    replacements: Mapping[str, bytes] | None = None,
    code: str | None = None,
) -> bytes:
    """Build a sub-workflow from real values; the bytes of its bundle.

    ``code`` is the digest of the snapshot that this worker was started with; the sub-workflow
    runs the same, and the bundle names it without holding it.

    ``lattice_pickle`` and the values of ``replacements`` are what ``pickle_lattice`` made of a
    lattice, and of electrons or functions.

    Raises:
        SerializationError: a pickle cannot be loaded in this environment.
        GraphError, BuildError, RedispatchError: as ``Lattice.build``.
    """
    lattice = load_value(lattice_pickle)
    targets = {name: load_value(data) for name, data in (replacements or {}).items()}
    bundle = build_bundle(lattice, tuple(args), dict(kwargs), defaults, targets, code)
    return bundle.to_bytes()


def task_names(graph: Graph) -> set[str]:
    """Names of the electrons and sub-workflows called in a graph: what can be replaced there."""
    return {node.name for node in graph.nodes if node.kind in (Kind.TASK, Kind.SUBLATTICE)}


def wait_for(child: Any, parents: Any) -> Any:
    """Run ``child``'s task after the tasks of ``parents``, and return ``child``.

    Outside a lattice ``child`` is returned as it is.

    Args:
        child: what an electron returned in this lattice.
        parents: the like, or an iterable of them.

    Raises:
        GraphError: no placeholder.
        ForeignPlaceholderError: a placeholder of another lattice.
    """
    if type(child) is Placeholder:
        recorder, node_id, _ = state_of(child)
        recorder.check_active()
        recorder.add_ordering(node_id, (parents,))
    elif active_build() is not None:
        raise GraphError(
            f"wait_for was given a {type(child).__name__} that is to wait; give it what an "
            f"electron of this lattice returned."
        )
    return child
