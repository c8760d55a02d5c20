"""A built workflow as one piece of bytes: the graph, and every blob it names.

A client hands a bundle to the kernel; a worker that builds a sub-workflow returns one as its
payload. Layout: 8 bytes of magic, 8 bytes little-endian length of a JSON index, the index, then
the blobs in the index's order. The index is ``{"graph", "lattice", "inputs", "blobs": [[digest,
size], …]}``; the kernel reads the index and the graph, and leaves the rest shut.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

from chelate.digest import digest_bytes, is_digest
from chelate.errors import GraphError
from chelate.graph import Graph

__all__ = ["Bundle"]

MAGIC = b"chelate1"


@dataclass(slots=True)
class Bundle:
    """``lattice`` and ``inputs`` are digests of the pickled lattice and of ``(args, kwargs)``."""

    graph: Graph | None
    blobs: dict[str, bytes] = field(default_factory=dict)
    lattice: str | None = None
    inputs: str | None = None

    def add(self, data: bytes) -> str:
        """Keep ``data`` and return its digest."""
        digest = digest_bytes(data)
        self.blobs[digest] = data
        return digest

    def to_bytes(self) -> bytes:
        """One piece; ``from_bytes`` is the inverse."""
        if self.graph is None:
            raise GraphError("A bundle without a graph cannot be sent.")
        blobs = dict(self.blobs)
        graph = self.graph.to_json()
        name = digest_bytes(graph)
        blobs[name] = graph
        index = json.dumps(
            {
                "graph": name,
                "lattice": self.lattice,
                "inputs": self.inputs,
                "blobs": [[digest, len(data)] for digest, data in blobs.items()],
            },
            separators=(",", ":"),
        ).encode()
        return b"".join([MAGIC, struct.pack("<Q", len(index)), index, *blobs.values()])

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Bundle:
        """Read a bundle and check every digest.

        Raises:
            GraphError: the bytes are not a bundle, or a blob does not match its digest.
        """
        view = memoryview(data)
        if bytes(view[:8]) != MAGIC or len(view) < 16:
            raise GraphError("These bytes are not a workflow bundle.")
        (length,) = struct.unpack("<Q", view[8:16])
        try:
            index = json.loads(bytes(view[16 : 16 + length]))
            blobs: dict[str, bytes] = {}
            offset = 16 + length
            for digest, size in index["blobs"]:
                chunk = bytes(view[offset : offset + size])
                offset += size
                if not is_digest(digest) or digest_bytes(chunk) != digest:
                    raise GraphError(f"Blob {digest!s:.20} of a workflow bundle is damaged.")
                blobs[digest] = chunk
            graph = Graph.from_json(blobs.pop(index["graph"]))
            return cls(graph, blobs, index["lattice"], index["inputs"])
        except (KeyError, TypeError, ValueError) as error:
            raise GraphError(f"These bytes are not a workflow bundle: {error!r}.") from error
