"""What a user may say about an electron or a lattice, and how what is left unsaid is filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from chelate.errors import ConfigError
from chelate.model import ExecutorRef, Resources, Retry, TaskPolicy, parse_duration

__all__ = ["BUILTIN", "Options", "read_executor"]


@dataclass(frozen=True, slots=True)
class Options:
    """Everything is None until the user says it.

    ``workflow_executor`` belongs to lattices; ``version``, ``depends_on`` and ``ignore`` belong to
    electrons, are never inherited, and are only kept here for whoever takes fingerprints.
    """

    executor: ExecutorRef | None = None
    workflow_executor: ExecutorRef | None = None
    retries: Retry | None = None
    timeout: float | None = None  # seconds
    resources: Resources | None = None
    reuse: bool | str | None = None
    version: str | None = None
    depends_on: tuple[Any, ...] | None = None
    ignore: tuple[str, ...] | None = None

    @classmethod
    def read(
        cls,
        *,
        executor: Any = None,
        workflow_executor: Any = None,
        retries: Any = None,
        timeout: Any = None,
        resources: Any = None,
        reuse: Any = None,
        version: Any = None,
        depends_on: Any = None,
        ignore: Any = None,
    ) -> Options:
        """Options from what the user wrote.

        Raises:
            ConfigError: a value of the wrong type or out of range.
        """
        if resources is not None and not isinstance(resources, Resources):
            raise ConfigError(f"resources={resources!r} must be Resources(cpus=…, mem=…).")
        if reuse is not None and not isinstance(reuse, bool) and reuse != "always":
            raise ConfigError(f'reuse={reuse!r} must be True, False or "always".')
        if version is not None and not isinstance(version, (str, int)):
            raise ConfigError(f"version={version!r} must be a text or a whole number.")
        return cls(
            executor=read_executor("executor", executor),
            workflow_executor=read_executor("workflow_executor", workflow_executor),
            retries=_read_retries(retries),
            timeout=None if timeout is None else parse_duration(timeout),
            resources=resources,
            reuse=reuse,
            version=None if version is None else str(version),
            depends_on=_several(depends_on),
            ignore=_names(ignore),
        )

    def over(self, base: Options) -> Options:
        """These options, with what they leave unsaid taken from ``base``."""
        said = {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}
        if self.retries and base.retries and self.retries.infrastructure is None:
            losses = base.retries.infrastructure
            said["retries"] = replace(self.retries, infrastructure=losses)
        return replace(base, **said)

    def policy(self) -> TaskPolicy:
        """How the kernel is to treat a task with these options."""
        return TaskPolicy(
            executor=self.executor or _LOCAL,
            retry=self.retries or Retry(),
            timeout=self.timeout,
            resources=self.resources or Resources(),
            reuse=True if self.reuse is None else self.reuse,
        )

    def to_json(self) -> dict[str, Any]:
        """Only what is said, under ``executor``, ``workflow_executor``, ``retries``, ``timeout``
        (seconds), ``resources`` and ``reuse``.
        """
        said: dict[str, Any] = {}
        if self.executor:
            said["executor"] = self.executor.to_json()
        if self.workflow_executor:
            said["workflow_executor"] = self.workflow_executor.to_json()
        if self.retries:
            said["retries"] = asdict(self.retries)
        if self.timeout is not None:
            said["timeout"] = self.timeout
        if self.resources:
            said["resources"] = self.resources.to_json()
        if self.reuse is not None:
            said["reuse"] = self.reuse
        return said

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Options:
        """The inverse of :meth:`to_json`.

        Raises:
            ConfigError: not made by :meth:`to_json`.
        """
        data = data or {}
        try:
            executor, workflow_executor = data.get("executor"), data.get("workflow_executor")
            retries, resources = data.get("retries"), data.get("resources")
            return cls(
                executor=None if executor is None else ExecutorRef.from_json(executor),
                workflow_executor=(
                    None if workflow_executor is None else ExecutorRef.from_json(workflow_executor)
                ),
                retries=None if retries is None else Retry(**retries),
                timeout=data.get("timeout"),
                resources=None if resources is None else Resources(**resources),
                reuse=data.get("reuse"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"These defaults cannot be read ({error!r}): {data!r}.") from error


_FIELDS = tuple(Options.__dataclass_fields__)
_LOCAL = ExecutorRef("local")
BUILTIN = Options(executor=_LOCAL, workflow_executor=_LOCAL)


def read_executor(option: str, value: Any) -> ExecutorRef | None:
    """An executor's name, or an object whose ``ref()`` gives an ExecutorRef, as that ref.

    Raises:
        ConfigError: anything else.
    """
    if value is None or isinstance(value, ExecutorRef):
        return value
    if isinstance(value, str) and value.strip():
        return ExecutorRef(value)
    ref = getattr(value, "ref", None)
    if callable(ref) and not isinstance(value, type):
        found = ref()
        if isinstance(found, ExecutorRef):
            return found
    hint = f"; write {value.__name__}(…)" if isinstance(value, type) else ""
    raise ConfigError(f'{option}={value!r} must be a name such as "local" or an executor{hint}.')


def _read_retries(value: Any) -> Retry | None:
    if value is None or isinstance(value, Retry):
        return value
    if isinstance(value, int):
        return Retry(times=value)
    raise ConfigError(f"retries={value!r} must be a whole number or Retry(times=…).")


def _several(value: Any) -> tuple[Any, ...] | None:
    if value is None:
        return None
    return tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (value,)


def _names(value: Any) -> tuple[str, ...] | None:
    names = _several(value)
    if names is not None and not all(isinstance(name, str) for name in names):
        raise ConfigError(f"ignore={value!r} must be names of parameters.")
    return names
