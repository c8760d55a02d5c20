"""Runs graphs with the real worker code, in this process and in graph order."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from chelate.bundle import Bundle
from chelate.graph import Kind
from chelate.worker import Runner


def execute(bundle, replacements=None, defaults=None):
    """Outputs by node id, and the pickled result of the lattice."""
    bundle = Bundle.from_bytes(bundle.to_bytes())
    graph, blobs = bundle.graph, dict(bundle.blobs)
    values = {str(node.id): node.value.digest for node in graph.nodes if node.value is not None}
    for node_id in graph.order():
        node = graph.nodes[node_id]
        assert node.kind != Kind.PARAMETER
        call = {
            "name": node.name,
            "kind": node.kind,
            "function": graph.functions[node.function].digest if node.function >= 0 else None,
            "args": node.args,
            "kwargs": node.kwargs,
            "values": values,
            "defaults": defaults,
            "replacements": replacements,
        }
        header, payload, _ = Runner(blobs.__getitem__).run(call)
        if not header["ok"]:
            raise RuntimeError(f"{node.name}: {header['error']}")
        if header.get("graph"):
            payload = execute(Bundle.from_bytes(payload)).result
        digest = header["digest"]
        blobs[digest] = payload
        values[str(node_id)] = digest
    kind, key = graph.result[:2]
    result = blobs[key] if kind == "c" else blobs[values[str(key)]]
    outputs = {int(node_id): pickle.loads(blobs[digest]) for node_id, digest in values.items()}
    return SimpleNamespace(result=result, outputs=outputs, graph=graph)


@pytest.fixture(scope="session")
def run():
    """``run(lattice, *args, **kwargs)`` is what a dispatch of the lattice would return."""

    def call(lattice, *args, **kwargs):
        return pickle.loads(execute(lattice.build(args, kwargs)).result)

    return call


@pytest.fixture(scope="session")
def run_all():
    """Like ``run``, with the outputs of all nodes; takes a bundle."""
    return execute
