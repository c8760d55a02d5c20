"""The normal form of a syntax tree, and which tree belongs to a live function.

The dump is our own because that of ``ast`` differs between Pythons. A tree counts only if its
text compiles to the very bytecode of the live function: a file edited after its import, an
assertion rewritten by a test runner or a wrong line number give no tree rather than a wrong one.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import os
import weakref
from pathlib import Path
from types import CodeType
from typing import Any, Final

from .bytecode import all_codes, code_facts

__all__ = ["dump_definition", "dump_module", "file_digests", "syntax_digest"]

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SKIPPED: Final = {"ctx", "kind", "type_comment", "type_ignores", "simple", "annotation", "returns"}
_FUTURE: Final = 0x1FE0000  # the compiler flags of __future__ features
_LIMIT: Final = 4096
_FILES: dict[tuple[str, float, int, int], _File] = {}
_CACHE: dict[int, tuple[weakref.ref[CodeType], tuple[Any, ...] | None, str | None]] = {}


def dump_definition(node: Definition) -> str:
    """The normal form of a function: no name, decorators, defaults, docstring, annotations."""
    out = [type(node).__name__]
    _arguments(node.args, out, own=True)
    body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else _body(node)
    for statement in body:
        _dump(statement, out, in_class=False)
    return "".join(out)


def dump_module(tree: ast.Module) -> str:
    """The normal form of a whole file."""
    out: list[str] = []
    for statement in _body(tree):
        _dump(statement, out, in_class=True)
    return "".join(out)


def _body(node: Any) -> list[ast.AST]:
    """The statements of a definition without its docstring and without ``pass``."""
    body: list[ast.AST] = list(node.body)
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        del body[0]
    return [statement for statement in body if not isinstance(statement, ast.Pass)]


def _arguments(node: ast.arguments, out: list[str], *, own: bool) -> None:
    out.append("(")
    for group in (node.posonlyargs, node.args, node.kwonlyargs):
        out.append("/".join(argument.arg for argument in group) + ";")
    for star in (node.vararg, node.kwarg):
        out.append(f"{star.arg if star else ''};")
    if own:  # the values are known, and their changes have a name of their own
        given = "".join("-" if default is None else "+" for default in node.kw_defaults)
        out.append(f"{len(node.defaults)};{given}")
    else:
        for default in (*node.defaults, *node.kw_defaults):
            _dump(default, out, in_class=False)
    out.append(")")


def _dump(node: Any, out: list[str], *, in_class: bool) -> None:
    if isinstance(node, list):
        out.append("[")
        for item in node:
            if not isinstance(item, ast.Pass):
                _dump(item, out, in_class=in_class)
        out.append("]")
    elif not isinstance(node, ast.AST):
        out.append(f"{type(node).__name__}:{node!a},")
    elif isinstance(node, ast.Constant):
        value = sorted(map(ascii, node.value)) if isinstance(node.value, frozenset) else node.value
        out.append(f"={type(node.value).__name__}:{value!a},")
    elif isinstance(node, ast.arguments):
        _arguments(node, out, own=False)
    elif isinstance(node, ast.JoinedStr):
        out.append("f{")
        for part in _joined(node):
            _dump(part, out, in_class=in_class)
        out.append("}")
    elif isinstance(node, ast.AnnAssign) and not in_class:
        if node.value is None:
            out.append("Declare{")
            _dump(node.target, out, in_class=False)
        else:
            out.append("Assign{targets[")
            _dump(node.target, out, in_class=False)
            out.append("]value")
            _dump(node.value, out, in_class=False)
        out.append("}")
    else:
        _plain(node, out, in_class=in_class)


def _plain(node: ast.AST, out: list[str], *, in_class: bool) -> None:
    defines = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    inside = isinstance(node, ast.ClassDef) or (in_class and not isinstance(node, _DEFINITIONS))
    out.append(type(node).__name__ + "{")
    for name in node._fields:
        item = getattr(node, name, None)
        if item is None or item == []:
            continue
        if name in _SKIPPED and not (isinstance(node, ast.AnnAssign) and name != "ctx"):
            continue
        if defines and name == "body":
            item = _body(node)
        out.append(name)
        _dump(item, out, in_class=inside)
    out.append("}")


def _joined(node: ast.JoinedStr) -> list[ast.AST]:
    """The parts of an f-string with neighbouring constants merged and empty ones left out."""
    parts: list[ast.AST] = []
    for part in node.values:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            if not part.value:
                continue
            last = parts[-1] if parts else None
            if isinstance(last, ast.Constant) and isinstance(last.value, str):
                parts[-1] = ast.Constant(last.value + part.value)
                continue
        parts.append(part)
    return parts


class _File:
    """The definitions of one version of one file, by name and first line."""

    def __init__(self, text: str, filename: str, flags: int) -> None:
        self.tree = compile(text, filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        self.code = compile(text, filename, "exec", flags, dont_inherit=True)
        self.nodes: dict[tuple[str, int], list[Definition]] = {}
        self.codes: dict[tuple[str, int], list[CodeType]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, _DEFINITIONS):
                lines = [item.lineno for item in getattr(node, "decorator_list", ())]
                key = (getattr(node, "name", "<lambda>"), min([*lines, node.lineno]))
                self.nodes.setdefault(key, []).append(node)
        for code in all_codes(self.code):
            self.codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)


def _version(filename: str) -> tuple[Any, ...] | None:
    entry = linecache.cache.get(filename)
    return entry[:2] if entry is not None and len(entry) > 1 else None


def _load(filename: str, flags: int) -> _File | None:
    lines = linecache.getlines(filename)
    if not lines and not Path(filename).is_file():
        return None
    text = "".join(lines)
    key = (filename, hash(text), len(text), flags)
    known = _FILES.get(key)
    if known is None:
        try:
            known = _File(text, filename, flags)
        except (SyntaxError, ValueError, RecursionError):
            return None
        if len(_FILES) >= 256:
            _FILES.clear()
        _FILES[key] = known
    return known


def syntax_digest(code: CodeType) -> str | None:
    """The digest of the verified syntax tree of a function, or None when there is none."""
    known = _CACHE.get(id(code))
    # A missing tree may appear when the file is loaded again; a verified one stays right.
    if (
        known is not None
        and known[0]() is code
        and (known[2] is not None or known[1] == _stamp(code.co_filename))
    ):
        return known[2]
    digest = _verified(code)
    if digest is None and code.co_filename in linecache.cache:
        linecache.checkcache(code.co_filename)
        digest = _verified(code)
    if len(_CACHE) >= _LIMIT:
        _CACHE.clear()
    _CACHE[id(code)] = (weakref.ref(code), _stamp(code.co_filename), digest)
    return digest


def _stamp(filename: str) -> tuple[Any, ...] | None:
    try:
        status = os.stat(filename)  # noqa: PTH116 - a name like "<stdin>" is no path
    except (OSError, ValueError):
        return _version(filename)
    return status.st_mtime_ns, status.st_size


def _verified(code: CodeType) -> str | None:
    file = _load(code.co_filename, code.co_flags & _FUTURE)
    if file is None:
        return None
    key = (code.co_name, code.co_firstlineno)
    nodes, codes = file.nodes.get(key, []), file.codes.get(key, [])
    if len(nodes) != 1 or len(codes) != 1:
        return None  # several on one line: nobody can tell which
    if code_facts(codes[0]).digest != code_facts(code).digest:
        return None
    try:
        text = dump_definition(nodes[0])
    except RecursionError:
        return None
    return hashlib.blake2b(b"tree1" + text.encode(), digest_size=32).hexdigest()


def file_digests(filename: str) -> tuple[str, str] | None:
    """The digests, by tree and by bytecode, of a whole source file; None without its source."""
    linecache.checkcache(filename)
    file = _load(filename, 0)
    if file is None:
        return None
    tree = hashlib.blake2b(b"file1" + dump_module(file.tree).encode(), digest_size=32).hexdigest()
    return tree, code_facts(file.code).digest
