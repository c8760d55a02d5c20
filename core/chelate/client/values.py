"""How the values of a lattice body become references: outputs, containers of them, constants."""

from __future__ import annotations

import pickle
from typing import Any

from chelate.client.codec import ATOMS, PROTOCOL, pickle_portable, pickle_value
from chelate.client.frames import current_line
from chelate.client.placeholder import Placeholder, StarredPart, state_of
from chelate.digest import digest_bytes
from chelate.errors import ForeignPlaceholderError, GraphError
from chelate.graph import Graph, Reference
from chelate.model import ValueRef
from chelate.values import describe, fingerprint

__all__ = ["Values"]

_LARGE = 4096
_HEADS: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "f"}


class Values:
    """The stored values of a graph that is being built. ``blobs`` are their bytes by digest."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.blobs: dict[str, bytes] = {}
        self._large: dict[int, tuple[Any, ValueRef]] = {}
        self._constants: dict[tuple[type, Any], str] = {}

    def foreign(self) -> ForeignPlaceholderError:
        """The error to raise when a placeholder of this build turns up elsewhere."""
        line = current_line()
        return ForeignPlaceholderError(
            f"The output of a task of the lattice {self.graph.name!r} is used outside the run of "
            f"its function{f' ({line})' if line else ''}. Return it from that lattice, or call "
            f"that lattice inside this one and use what it returns."
        )

    def holds(self, value: Any) -> bool:
        """Whether a value is, or is a container with, a placeholder."""
        return self.structure(value, "The key", {}) is not None

    def constant(self, value: Any, what: str) -> str:
        """Store a value that is part of a reference, and return its digest."""
        kind = type(value)
        # Operands and keys recur. Not floats: 0.0 and -0.0 are equal and not the same.
        key = (kind, value) if kind is int or kind is str else None
        digest = None if key is None else self._constants.get(key)
        if digest is None:
            kept = self.keep(value, what)
            digest = self.graph.values.setdefault(kept.digest, kept).digest
            if key is not None:
                self._constants[key] = digest
        return digest

    def store(self, data: bytes) -> str:
        digest = digest_bytes(data)
        self.blobs[digest] = data
        return digest

    def keep_atom(self, value: Any) -> ValueRef:
        if type(value) in (str, bytes) and len(value) >= _LARGE:
            known = self._large.get(id(value))
            if known is None:
                known = self._large[id(value)] = (value, self._stored(value))
            return known[1]
        return self._stored(value)

    def _stored(self, value: Any) -> ValueRef:
        data = pickle.dumps(value, PROTOCOL)
        digest = digest_bytes(data)
        self.blobs[digest] = data
        return ValueRef(digest, len(data), fingerprint(value))

    def keep(self, value: Any, what: str, portable: bool = False) -> ValueRef:
        """Store a value as it is now, so that later changes of it do not count."""
        kind = type(value)
        if kind in ATOMS:
            return self.keep_atom(value)
        if kind in (map, filter, zip):
            raise GraphError(
                f"{what} is a {kind.__name__} that has not been run through; pass a list of its "
                f"items ({current_line()})."
            )
        if kind in _HEADS and ATOMS.issuperset(map(type, value)):
            data = pickle.dumps(value, PROTOCOL)  # far cheaper than setting up cloudpickle
        else:
            data = pickle_portable(value, what) if portable else pickle_value(value, what)
        whole, code = describe(value)
        return ValueRef(self.store(data), len(data), whole, code or None)

    def output(self, placeholder: Placeholder) -> Reference:
        recorder: Any
        recorder, node_id, path = state_of(placeholder)
        if recorder is not self:
            error: ForeignPlaceholderError = recorder.foreign()
            raise error
        return ["n", node_id, list(path)] if path else ["n", node_id]

    def reference(self, value: Any, what: str, of: str = "") -> Reference:
        """The reference to a value of any kind; one without placeholders becomes a constant."""
        kind = type(value)
        if kind is Placeholder:
            return self.output(value)
        if kind not in ATOMS:
            what += of
            reference = self.structure(value, what, {})
            if reference is not None:
                return reference
        return ["c", self.constant(value, what)]

    def structure(
        self, value: Any, what: str, known: dict[int, Reference | None]
    ) -> Reference | None:
        """The reference to a value that holds a placeholder; None for one that holds none."""
        kind = type(value)
        if kind in ATOMS:
            return None
        if kind is Placeholder:
            return self.output(value)
        if kind is StarredPart:
            value.refuse()
        if kind is slice:
            items: list[Any] = [value.start, value.stop, value.step]
        elif kind is dict:
            items = [part for pair in value.items() for part in pair]
        elif kind in _HEADS or (isinstance(value, tuple) and hasattr(kind, "_fields")):
            items = list(value)
        else:
            return None
        if id(value) in known or ATOMS.issuperset(map(type, items)):
            return known.get(id(value))
        if kind is list and type(items[0]) is StarredPart:
            return self._starred(items)
        known[id(value)] = None  # met again inside itself, it is no reason to take it apart
        try:
            parts = [self.structure(item, what, known) for item in items]
        except RecursionError:
            raise GraphError(
                f"{what} is nested too deeply ({current_line()}); pass it in a flat form."
            ) from None
        if not any(parts):
            return None
        filled = [
            ["c", self.constant(item, what)] if part is None else part
            for item, part in zip(items, parts, strict=True)
        ]
        reference: Reference
        head = _HEADS.get(kind)
        if head is not None:
            reference = [head, filled]
        elif kind is dict:
            reference = ["d", [list(pair) for pair in zip(filled[::2], filled[1::2], strict=True)]]
        elif kind is slice:
            reference = ["o", self.constant(slice, what), filled]
        else:
            reference = ["o", self.constant(kind._make, what), [["t", filled]]]
        known[id(value)] = reference
        return reference

    def _starred(self, items: list[Any]) -> Reference:
        whole = items[0].whole
        untouched = len(items) == StarredPart.PLACES and all(
            type(item) is StarredPart and item.whole is whole and item.place == place
            for place, item in enumerate(items)
        )
        return self.output(whole) if untouched else items[0].refuse()
