"""One process of a pair: loads every program of a folder, dispatches it, and says what happened.

``driver.py FOLDER before|after STATE`` writes to the file STATE, as JSON, the dispatch ids of the
first run, or what the second one did. Each program is a package ``FOLDER/<name>`` with a module
``main`` that holds the lattice ``wf``, perhaps ``ARGS``, ``KWARGS``, ``again(parent)`` and
``meanwhile(parent)``.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import chelate as ct
from chelate.embedding import current


def _programs(folder: Path) -> dict[str, Any]:
    names = sorted(path.parent.name for path in folder.glob("*/main.py"))
    return {name: importlib.import_module(f"{name}.main") for name in names}


def _inputs(module: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return getattr(module, "ARGS", ()), getattr(module, "KWARGS", {})


def _row(row: Any, prefix: str = "", kind: str = "") -> list[str]:
    return [prefix + row.name, row.decision, row.code, row.sentence, kind]


def _explained(dispatch_id: str, prefix: str = "") -> list[list[str]]:
    rows = []
    result = ct.get_result(dispatch_id)
    gateway = current()
    nodes = gateway.graph(gateway.record(dispatch_id)).nodes
    for row in ct.explain(dispatch_id):
        kind = nodes[row.node_id].kind
        rows.append(_row(row, prefix, ("sub " if prefix else "") + kind))
        node = result.get_node_result(row.node_id)
        if row.decision == "REUSE":
            assert node["start_time"] == node["end_time"]
            assert node["reused_from"] == row.origin
        elif row.decision == "RUN":
            assert node["reused_from"] is None
            if node["sublattice_result"] is not None:
                child = node["sublattice_result"].dispatch_id
                rows += _explained(child, f"{prefix}{row.name}.")
    return rows


def _before(programs: dict[str, Any]) -> dict[str, Any]:
    ids: dict[str, Any] = {}
    for name, module in programs.items():
        args, kwargs = _inputs(module)
        ids[name] = ct.dispatch(module.wf)(*args, **kwargs)
    for name, module in programs.items():
        if not hasattr(module, "UNFINISHED"):
            ct.get_result(ids[name], wait=True, timeout=200)
        if hasattr(module, "meanwhile"):
            ids[name] = module.meanwhile(ids[name]) or ids[name]
    return ids


def _after(programs: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module in programs.items():
        found[name] = {}
        try:
            args, kwargs = _inputs(module)
            if hasattr(module, "again"):
                submit, args, kwargs = module.again(ids[name])
            else:
                submit = ct.dispatch(module.wf, reuse_from=ids[name])
            found[name]["plan"] = [_row(row) for row in submit.plan(*args, **kwargs)]
            found[name]["id"] = submit(*args, **kwargs)
        except Exception:
            found[name]["error"] = traceback.format_exc()
    for name, module in programs.items():
        outcome = found[name]
        if "id" not in outcome:
            continue
        try:
            result = ct.get_result(outcome["id"], wait=True, timeout=200)
            outcome["status"] = str(result.status)
            outcome["failure"] = result.error
            outcome["text"] = str(ct.explain(outcome["id"]))
            outcome["rows"] = _explained(outcome["id"])
            if result.status == "COMPLETED":
                outcome["result"] = _shown(result.result)
            if result.status != "COMPLETED":
                continue
            if hasattr(module, "RESULT"):
                outcome["expected"] = _shown(module.RESULT)
            else:
                args, kwargs = _inputs(module)
                if hasattr(module, "again"):
                    given = module.again(ids[name])[1:]
                    args, kwargs = given if any(given) else (args, kwargs)
                outcome["expected"] = _shown(module.wf.workflow_function(*args, **kwargs))
        except Exception:
            outcome["error"] = traceback.format_exc()
    return found


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}" if not hasattr(value, "dtypes") else value.to_csv()


def main(folder: str, phase: str, state: str) -> None:
    sys.path.insert(0, folder)
    programs = _programs(Path(folder))
    known = Path(state)
    if phase == "before":
        done = _before(programs)
    else:
        done = _after(programs, json.loads(known.read_text()))
    known.write_text(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
