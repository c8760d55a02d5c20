"""Building a graph in a process of its own, without running any task."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chelate.bundle import Bundle
from chelate.client.codec import load_value
from chelate.errors import BuildError, ChelateError
from chelate.graph import Graph, Node

__all__ = ["build_apart", "main"]


def build_apart(
    store: Any, graph: Graph, blobs: Mapping[str, bytes], options: Any
) -> tuple[Graph, dict[str, bytes]]:
    """The graph that a build node would give, and its blobs; ``store`` reads values by digest.

    Raises:
        BuildError: the workflow cannot be loaded or built there; carries that process's words.
    """
    node: Node = graph.nodes[0]
    lattice = graph.functions[node.function].digest or ""
    wanted = [lattice, *(ref[1] for ref in node.references())]
    replacements: Mapping[str, str] = options.get("replacements") or {}
    wanted += replacements.values()
    wanted += [graph.code] if graph.code else []
    request = {
        "lattice": lattice,
        "code": graph.code,
        "args": [ref[1] for ref in node.args],
        "kwargs": {name: ref[1] for name, ref in node.kwargs.items()},
        "defaults": options.get("defaults"),
        "replacements": dict(replacements),
    }
    import json

    with tempfile.TemporaryDirectory(prefix="chelate-build-") as folder:
        for digest in wanted:
            data = blobs[digest] if digest in blobs else store.read(digest)
            (Path(folder) / digest).write_bytes(data)
        (Path(folder) / "request.json").write_text(json.dumps(request))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path),
        }
        done = subprocess.run(
            [sys.executable, "-m", "chelate.client.building", folder],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        result = Path(folder) / "bundle"
        if done.returncode or not result.exists():
            said = Path(folder) / "error"
            last = said.read_text().splitlines() if said.exists() else []
            last = last or done.stderr.strip().splitlines()[-1:] or ["no message"]
            here, made = _minor(platform.python_version()), _minor(options.get("python") or "")
            hint = ""
            if made and made != here and f"Python {made}" not in last[0]:
                hint = (
                    f" It was stored by Python {made} and this is Python {here}; plan it there, or "
                    "dispatch the workflow from its source with reuse_from=."
                )
            raise BuildError(f"The stored workflow cannot be built: {last[0]}{hint}")
        built = Bundle.from_bytes(result.read_bytes())
    assert built.graph is not None
    return built.graph, built.blobs


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def main(folder: str) -> None:
    """Entry of the process: read the request, write the bundle."""
    import json

    from chelate.client.build import build_in_worker
    from chelate.worker import use_code

    place = Path(folder)
    request = json.loads((place / "request.json").read_text())

    def read(digest: str) -> bytes:
        return (place / digest).read_bytes()

    if request["code"]:
        use_code(request["code"], str(place / request["code"]), folder)
    try:
        data = build_in_worker(
            read(request["lattice"]),
            tuple(load_value(read(digest)) for digest in request["args"]),
            {name: load_value(read(digest)) for name, digest in request["kwargs"].items()},
            defaults=request["defaults"],
            replacements={name: read(digest) for name, digest in request["replacements"].items()},
            code=request["code"],
        )
    except ChelateError as error:
        # The line that called this process is none of the user's.
        told = re.sub(r" \(<frozen runpy>:\d+\)", "", str(error))
        (place / "error").write_text(" ".join(told.split()))
        sys.exit(1)
    (place / "bundle").write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1])
