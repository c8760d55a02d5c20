"""The normal form of bytecode, and what a code object reaches for.

Positions, line tables, file names, qualified names, caches and the order of the constants do not
count: a comment, a moved definition or a removed docstring leaves the digest as it is.
"""

from __future__ import annotations

import dis
import hashlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final

from chelate.values import fingerprint

__all__ = ["CodeFacts", "Import", "all_codes", "code_facts", "nested_codes"]

_DROPPED: Final = {"CACHE", "EXTENDED_ARG", "NOP", "RESUME"}
_BOOKKEEPING: Final = {"__firstlineno__", "__static_attributes__"}
# Arguments, generators and coroutines; not where the code is nested or whether it has a docstring.
_FLAGS: Final = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200
_ATTRIBUTES: Final = {"LOAD_ATTR", "LOAD_METHOD"}
_GLOBALS: Final = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
# Between the name of a function and its first argument, or the key of what it returns.
_CALLS: Final = {"PUSH_NULL", "PRECALL", "CALL", "CALL_FUNCTION", *_ATTRIBUTES}
_LIMIT: Final = 8192
_CACHE: dict[int, tuple[weakref.ref[CodeType], CodeFacts]] = {}


@dataclass(frozen=True, slots=True)
class Import:
    """An import inside a body: ``names`` of ``from module import names``, empty otherwise."""

    module: str
    level: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """What counts of a code object and the ones nested in it.

    ``chains`` are global names, each with the attributes read from it at once
    (``("helpers", "norm")``); ``names`` all names the code uses, ``attributes`` those of
    attributes, ``strings`` its texts; ``computed`` whether it looks up globals by a name, or runs
    a text, that is not there to be read.
    """

    digest: str
    chains: tuple[tuple[str, ...], ...]
    imports: tuple[Import, ...]
    names: frozenset[str]
    attributes: frozenset[str]
    strings: frozenset[str]
    computed: bool


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """The code objects of the functions and classes defined directly in ``code``."""
    return (constant for constant in code.co_consts if isinstance(constant, CodeType))


def all_codes(code: CodeType) -> Iterator[CodeType]:
    """``code`` and every code object nested in it, at any depth."""
    waiting = [code]
    while waiting:
        current = waiting.pop()
        yield current
        waiting.extend(nested_codes(current))


def code_facts(code: CodeType) -> CodeFacts:
    """The facts of ``code``, remembered while it lives."""
    known = _CACHE.get(id(code))
    if known is not None and known[0]() is code:
        return known[1]
    facts = _examine(code)
    if len(_CACHE) >= _LIMIT:
        _CACHE.clear()
    _CACHE[id(code)] = (weakref.ref(code), facts)
    return facts


def _examine(code: CodeType) -> CodeFacts:
    listing = dis.Bytecode(code)
    found = [item for item in listing if item.opname not in _DROPPED]
    state = hashlib.blake2b(b"code1", digest_size=32)
    names = code.co_varnames[: _argument_count(code)]
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    state.update(repr((counts, names, code.co_flags & _FLAGS, code.co_freevars)).encode())
    kept = [
        item
        for item, after in zip(found, [*found[1:], None], strict=True)
        if not _is_bookkeeping(item, after)
    ]
    places = _Places([item.offset for item in kept])
    for item, after in zip(kept, [*kept[1:], None], strict=True):
        state.update(f"\n{item.opname} {_operand(item, after, places)}".encode("utf-8", "replace"))
    for entry in getattr(listing, "exception_entries", ()):
        span = (places.after(entry.start), places.after(entry.end), places.after(entry.target))
        state.update(f"\n!{span} {entry.depth} {entry.lasti}".encode())
    chains = set(_chains(found))
    imports = set(_imports(found))
    used = set(code.co_names)
    attributes = set(_attributes(found))
    strings = {item for item in code.co_consts if type(item) is str}
    texts = list(_texts(found))
    for inner in [*nested_codes(code), *filter(None, map(_compiled, texts))]:
        facts = code_facts(inner)
        attributes |= facts.attributes
        strings |= facts.strings
        texts += [None] * facts.computed
        chains.update(facts.chains)
        imports.update(facts.imports)
        used |= facts.names
    order = sorted(imports, key=lambda item: (item.module, item.level, item.names))
    return CodeFacts(
        state.hexdigest(),
        tuple(sorted(chains)),
        tuple(order),
        frozenset(used),
        frozenset(attributes),
        frozenset(strings),
        None in texts,
    )


def _attributes(found: list[dis.Instruction]) -> Iterator[str]:
    """The attributes that are read; ``type(x).__name__`` is the name of a class, which counts."""
    for number, item in enumerate(found):
        if item.opname in _ATTRIBUTES:
            before = [str(known.argval) for known in found[max(0, number - 5) : number]]
            of_class = before[-1:] == ["__class__"] or "type" in before
            if not (item.argval == "__name__" and of_class):
                yield str(item.argval)


def _texts(found: list[dis.Instruction]) -> Iterator[str | None]:
    """The texts given to ``eval``, ``exec`` and ``globals()[…]``; None for a computed one."""
    for number, item in enumerate(found):
        if item.opname in _GLOBALS and item.argval in ("eval", "exec", "globals"):
            rest = (after for after in found[number + 1 :] if after.opname not in _CALLS)
            given = next(rest)  # a code object ends in other instructions
            literal = given.opname == "LOAD_CONST" and type(given.argval) is str
            yield given.argval if literal else None


def _compiled(text: str | None) -> CodeType | None:
    try:
        return None if text is None else compile(text, "<text>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None


def _argument_count(code: CodeType) -> int:
    stars = bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    return code.co_argcount + code.co_kwonlyargcount + stars


def _is_bookkeeping(item: dis.Instruction, after: dis.Instruction | None) -> bool:
    """Whether an instruction stores, or loads to be stored, what only tools read."""
    if item.opname == "STORE_NAME":
        return item.argval in _BOOKKEEPING
    return after is not None and after.opname == "STORE_NAME" and after.argval in _BOOKKEEPING


class _Places:
    """Numbers of the instructions that count, by offset."""

    def __init__(self, offsets: list[int]) -> None:
        self._offsets = offsets
        self._numbers = {offset: number for number, offset in enumerate(offsets)}

    def after(self, offset: int) -> int:
        """The number of the first counted instruction at or after ``offset``."""
        number = self._numbers.get(offset)
        if number is None:
            number = sum(1 for known in self._offsets if known < offset)
        return number


def _operand(item: dis.Instruction, after: dis.Instruction | None, places: _Places) -> str:
    if item.opcode in dis.hasconst:
        named = after is not None and (
            after.opname == "MAKE_FUNCTION"
            or (after.opname == "STORE_NAME" and after.argval == "__qualname__")
        )
        if named and isinstance(item.argval, str):
            return item.argval.rpartition(".")[2]  # the names around the definition do not count
        return _constant(item.argval)
    if item.opcode in dis.hasjrel or item.opcode in dis.hasjabs:
        return f"+{places.after(item.argval) - places.after(item.offset)}"
    if isinstance(item.argval, str):
        return ascii(item.argval)
    if isinstance(item.argval, tuple) and all(isinstance(name, str) for name in item.argval):
        return ascii(item.argval)
    return str(item.arg)


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return code_facts(value).digest
    if isinstance(value, tuple) and any(isinstance(item, CodeType) for item in value):
        return f"({' '.join(map(_constant, value))})"
    return fingerprint(value) or ascii(value)


def _chains(found: list[dis.Instruction]) -> Iterator[tuple[str, ...]]:
    for number, item in enumerate(found):
        if item.opname not in _GLOBALS:
            continue
        chain = [str(item.argval)]
        for following in found[number + 1 :]:
            if following.opname not in _ATTRIBUTES:
                break
            chain.append(str(following.argval))
        yield tuple(chain)


def _imports(found: list[dis.Instruction]) -> Iterator[Import]:
    for number, item in enumerate(found):
        if item.opname == "IMPORT_NAME" and number >= 2:
            level, names = found[number - 2].argval, found[number - 1].argval
            yield Import(
                str(item.argval),
                level if isinstance(level, int) else 0,
                tuple(names) if isinstance(names, tuple) else (),
            )
