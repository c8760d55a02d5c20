"""How a value becomes a fingerprint: typed parts, and containers written from their parts alone.

A fingerprint is 64 hexadecimal characters. A value whose typed encoding takes at most 31 bytes
(numbers, short strings, pairs of numbers) *is* its encoding, padded; any other is a BLAKE2b hash
behind the version of the encoding. A container is encoded from the fingerprints of its items
alone, so :func:`combine` computes the fingerprint of a list from those of its items without
having them, and a list of a million numbers is still one array and one hash.

Which types are encoded how is the business of ``values.py``. Standard library only: both files
may be copied side by side to another host.
"""

from __future__ import annotations

import contextvars
import math
import struct
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final

from .code import code_of, written_by_user

__all__ = [
    "BUILTIN",
    "SCALARS",
    "VERSION",
    "Encoder",
    "Field",
    "Unstable",
    "class_name",
    "combine",
    "to_text",
]

VERSION: Final = b"\x01"
_INLINE: Final = 31
_JOINED: Final = 1 << 12
_SHORT: Final = 8  # so few items are visited faster than examined
_CHUNK_DEPTH: Final = 80
_DEEPEST: Final = 40_000
_MEMO_ENTRIES: Final = 1 << 17
_NEVER: Final = sys.maxsize
_SWAP: Final = sys.byteorder == "big"

Chunk = bytes | bytearray | memoryview


class Unstable(Exception):
    """A part has no stable fingerprint; ``where`` collects the way to it, innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.where: list[str] = []


def combine(kind: str, parts: Sequence[str]) -> str:
    """The fingerprint of a container from the fingerprints of its items.

    ``kind`` is ``"l"``, ``"t"``, ``"s"``, ``"f"`` or ``"d"`` (list, tuple, set, frozenset, dict);
    a dict takes its keys and values alternately. Equal elements of a set and equal keys of a dict
    count once. Raises ValueError for another kind or a part that is no fingerprint.
    """
    items = [_from_text(part) for part in parts]
    if kind in ("l", "t"):
        return to_text(_seal([kind.encode(), *_layout(items)]))
    if kind in ("s", "f"):
        return to_text(_seal([kind.encode(), *_layout(_sorted_parts(set(items)))]))
    if kind != "d" or len(items) % 2:
        raise ValueError(f"no container of kind {kind!r} has {len(items)} parts")
    pairs = dict(zip(items[::2], items[1::2], strict=True))
    return to_text(_seal([b"d", *_layout(list(pairs)), *_layout(list(pairs.values()))]))


def to_text(part: bytes) -> str:
    """A part as a fingerprint: 64 hexadecimal characters, short parts padded."""
    if len(part) == 32:
        return part.hex()
    return (bytes((0x80 | len(part),)) + part).ljust(32, b"\0").hex()


def _from_text(text: str) -> bytes:
    data = bytes.fromhex(text)
    if len(data) == 32 and data[:1] == VERSION:
        return data
    if len(data) != 32 or not data[0] & 0x80:
        raise ValueError(f"{text!r} is no fingerprint of a value")
    return data[1 : 1 + (data[0] & 0x7F)]


def _seal(chunks: Sequence[Chunk]) -> bytes:
    """A part: the encoding itself when it is short, else its hash."""
    size = sum(map(len, chunks))
    if size <= _INLINE:
        return b"".join(chunks)
    if size <= _JOINED:
        return VERSION + blake2b(VERSION + b"".join(chunks), digest_size=31).digest()
    state = blake2b(VERSION, digest_size=31)
    for chunk in chunks:
        state.update(chunk)
    return VERSION + state.digest()


def _packed(code: str, items: Iterable[Any]) -> bytes:
    numbers = array(code, items)
    if _SWAP:
        numbers.byteswap()
    return numbers.tobytes()


def _layout(items: Sequence[bytes]) -> list[Chunk]:
    """How parts are written in a row; equal to :func:`_uniform` of the values behind them."""
    count = struct.pack("<Q", len(items))
    heads = {part[:1] for part in items}
    if heads == {b"q"} or heads == {b"e"}:
        return [heads.pop(), count, b"".join([part[1:] for part in items])]
    if heads == {b"u"}:
        sizes = bytes([len(part) - 1 for part in items])
        return [b"u", count, sizes, b"".join([part[1:] for part in items])]
    return [b"m", count, bytes(map(len, items)), b"".join(items)]


def _uniform(values: Sequence[Any]) -> list[Chunk] | None:
    """The layout of numbers, or of short strings, without visiting each; None for a mixture."""
    kinds = set(map(type, values))
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    count = struct.pack("<Q", len(values))
    if kind is int:
        try:
            return [b"q", count, _packed("q", values)]
        except OverflowError:
            return None
    if kind is float:
        if math.isnan(sum(values)):
            values = [math.nan if value != value else value for value in values]
        return [b"e", count, _packed("d", values)]
    if kind is str:
        text = "".join(values)
        if text.isascii():
            if max(map(len, values)) < _INLINE:
                return [b"u", count, bytes(map(len, values)), text.encode()]
            return None
        coded = [value.encode("utf-8", "surrogatepass") for value in values]
        if max(map(len, coded)) < _INLINE:
            return [b"u", count, bytes(map(len, coded)), b"".join(coded)]
    return None


def _sorted_parts(items: Iterable[bytes]) -> list[bytes]:
    found = sorted(items)
    if all(part[:1] == b"q" for part in found):
        found.sort(key=lambda part: int.from_bytes(part[1:], "little", signed=True))
    return found


def _integer(value: int) -> bytes:
    if -(1 << 63) <= value < 1 << 63:
        return b"q" + value.to_bytes(8, "little", signed=True)
    return _seal([b"I", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)])


def _float(value: float) -> bytes:
    return struct.pack("<d", math.nan if value != value else value)


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"u" + data if len(data) < _INLINE else _seal((b"u", data))


SCALARS: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda value: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: _integer,
    float: lambda value: b"e" + _float(value),
    complex: lambda value: b"c" + _float(value.real) + _float(value.imag),
    str: _text,
    bytes: lambda value: _seal((b"b", value)),
    bytearray: lambda value: _seal((b"a", value)),
    type(Ellipsis): lambda value: b".",
    type(NotImplemented): lambda value: b"!",
}


def class_name(kind: type) -> str:
    """The name by which a class counts in fingerprints of its instances."""
    # pathlib, among others, moves classes into submodules from one Python to the next.
    module = kind.__module__.partition(".")[0]
    if module not in sys.stdlib_module_names:
        module = kind.__module__
    return f"{module}:{kind.__qualname__}"


Follow = Callable[[Any, bool], "str | None"]


_MUTABLE: Final = frozenset({list, dict, set, bytearray})


def _has_identity(kind: type) -> bool:
    """Whether it can be told apart if two parts are one instance of a class, or two equal ones."""
    hashed: Any = kind.__hash__
    return (hashed is None or hashed is object.__hash__) and written_by_user(kind)


class Encoder:
    """One pass over one value. ``code`` has the digests of the users' code that was met, by kind
    and name: ``class project.models:Model``.

    With ``follow`` the value is one that code refers to where it stands, not one that is pickled:
    whoever walks over the code takes what ``follow(found, unordered)`` answers for, and the text
    it gives stands for that. Which mutable parts are one object counts then too.
    """

    def __init__(
        self, other: Callable[[Encoder, Any], list[Chunk]], follow: Follow | None = None
    ) -> None:
        self.code: dict[str, str] = {}
        self.follow = follow
        self.unordered = 0
        self._seen: dict[int, tuple[Any, int]] = {}
        self._other = other
        self._memo: dict[int, tuple[Any, bytes]] = {}
        self._path: dict[int, int] = {}
        self._heads: dict[tuple[str, type, tuple[str, ...]], tuple[bytes, list[Field]]] = {}
        self._levels = 0
        self._lowest = _NEVER

    def run(self, value: Any) -> bytes:
        """The part for ``value``."""
        try:
            return self.part(value)
        except RecursionError:
            raise Unstable("is nested too deeply") from None

    def _deeper(self, value: Any) -> bytes:
        """The part for a deep value, on the stack of another thread."""
        if len(self._path) > _DEEPEST:
            raise Unstable("is nested too deeply")
        levels, self._levels = self._levels, 0
        results: list[bytes | BaseException] = []

        def work() -> None:
            try:
                results.append(self.run(value))
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                results.append(error)

        # What callers keep in the context holds for the whole value.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Unstable("is nested too deeply") from error
        thread.join()
        self._levels = levels
        if isinstance(results[0], BaseException):
            raise results[0]
        return results[0]

    def part(self, value: Any) -> bytes:
        """The part for one item."""
        scalar = SCALARS.get(type(value))
        if scalar is not None:
            return scalar(value)
        key = id(value)
        if self.follow is not None and not self.unordered and key not in self._path:
            first = self._seen.get(key)
            if first is not None:
                return b"=" + struct.pack("<Q", first[1])
            if type(value) in _MUTABLE or _has_identity(type(value)):
                self._seen[key] = value, len(self._seen)
        known = self._memo.get(key)
        if known is not None:
            return known[1]
        depth = len(self._path)
        ancestor = self._path.get(key)
        if ancestor is not None:
            self._lowest = min(self._lowest, ancestor)
            return b"^" + struct.pack("<Q", depth - ancestor)
        if self._levels >= _CHUNK_DEPTH:
            return self._deeper(value)
        outer, self._lowest = self._lowest, _NEVER
        self._path[key] = depth
        self._levels += 1
        part = _seal(BUILTIN.get(type(value), self._other)(self, value))
        self._levels -= 1
        del self._path[key]
        # What refers to a container around it means something else elsewhere.
        if self._lowest >= depth:
            self._lowest = outer
            if len(part) == 32:
                if len(self._memo) >= _MEMO_ENTRIES:
                    self._memo.clear()
                self._memo[key] = (value, part)
        else:
            self._lowest = min(self._lowest, outer)
        return part

    def class_of(self, value: Any) -> str:
        """How the class of ``value`` counts: by name, and the user's own with its code."""
        kind = value if isinstance(value, type) else type(value)
        name = class_name(kind)
        if self.follow is not None:
            return f"{name} {self.follow(kind, self.unordered > 0)}"
        digest = code_of(kind) if written_by_user(kind) else None
        if digest is None:
            return name
        self.code[f"class {name}"] = digest
        return f"{name} {digest}"

    def row(self, values: Sequence[Any], names: Sequence[Any] | None = None) -> list[Chunk]:
        """The layout of ``values``; ``names`` say what to call them when one is unstable."""
        if len(values) > _SHORT:
            found = _uniform(values)
            if found is not None:
                return found
        return _layout(self._parts(values, names))

    def _parts(self, values: Iterable[Any], names: Sequence[Any] | None) -> list[bytes]:
        items: list[bytes] = []
        append, part, scalars = items.append, self.part, SCALARS.get
        try:
            for value in values:
                scalar = scalars(type(value))
                append(part(value) if scalar is None else scalar(value))
        except Unstable as error:
            name = len(items) if names is None else names[len(items)]
            error.where.append(name if isinstance(name, Field) else f"[{name!r:.60}]")
            raise
        return items

    def record(self, tag: str, *values: Any, names: Sequence[str] = ()) -> list[Chunk]:
        """The encoding of anything made of parts; ``tag`` keeps the kinds apart."""
        shown = [Field(""), *map(Field, names or [""] * len(values))]
        return [b"o", *self.row((tag, *values), shown)]

    def fields(self, tag: str, kind: type, fields: dict[str, Any], *more: Any) -> list[Chunk]:
        """The encoding of an object by its class and its fields, in the order of their names."""
        names = tuple(sorted(fields))
        key = (tag, kind, names)
        known = self._heads.get(key)
        if known is None:
            part = self.part((tag, self.class_of(kind), names))
            known = self._heads[key] = part, [Field(f".{name}") for name in names]
        head, shown = known
        if more:
            shown = [*shown, *map(Field, [""] * len(more))]
        items = self._parts([*map(fields.__getitem__, names), *more], shown)
        return [b"o", *_layout([head, *items])]

    def set(self, tag: bytes, values: Iterable[Any]) -> list[Chunk]:
        """The encoding of a set, whose order says nothing."""
        kinds = set(map(type, values))
        if kinds == {int} or kinds == {str}:
            found = _uniform(sorted(values))
            if found is not None:
                return [tag, *found]
        self.unordered += 1
        parts = {self.part(value) for value in values}
        self.unordered -= 1
        return [tag, *_layout(_sorted_parts(parts))]


class Field(str):
    """A way to a part that is shown as it is, not as an index."""

    __slots__ = ()


def _mapping(encoder: Encoder, value: dict[Any, Any]) -> list[Chunk]:
    keys = list(value)
    return [b"d", *encoder.row(keys), *encoder.row(list(value.values()), keys)]


BUILTIN: Final[dict[type, Callable[[Encoder, Any], list[Chunk]]]] = {
    list: lambda encoder, value: [b"l", *encoder.row(value)],
    tuple: lambda encoder, value: [b"t", *encoder.row(value)],
    set: lambda encoder, value: encoder.set(b"s", value),
    frozenset: lambda encoder, value: encoder.set(b"f", value),
    dict: _mapping,
}
