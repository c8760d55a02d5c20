# ruff: noqa: RUF012 - a table of the class
"""Generated edits of functions of the standard library: none that matters is missed.

The default run makes a few; ``CHELATE_TEST_MUTATIONS=1000`` makes that many.
"""

from __future__ import annotations

import argparse
import ast
import base64
import bisect
import calendar
import collections
import configparser
import csv
import difflib
import fractions
import heapq
import importlib.util
import os
import random
import statistics
import string
import sys
import textwrap
import tokenize
from pathlib import Path

from chelate.client.fingerprint import fingerprint_function, same

MODULES = [
    argparse,
    base64,
    bisect,
    calendar,
    collections,
    configparser,
    csv,
    difflib,
    fractions,
    heapq,
    random,
    statistics,
    string,
    textwrap,
    tokenize,
]
COUNT = int(os.environ.get("CHELATE_TEST_MUTATIONS", "150"))


def functions():
    """Text and tree of plain functions and methods, each as a function of its own."""
    found = []
    for module in MODULES:
        text = Path(module.__file__).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
                part = textwrap.dedent(ast.get_source_segment(text, node, padded=True))
                if "super()" in part or "__class__" in part or "nonlocal" in part or "if 0" in part:
                    continue  # means something else outside of its class, or never runs
                try:
                    tree = ast.parse(part)
                    compile(tree, "x", "exec")
                except SyntaxError:
                    continue
                tree.body[0].decorator_list.clear()
                found.append(ast.unparse(tree))
    return found


class Semantic(ast.NodeTransformer):
    """Changes the node number ``target`` among those that can be changed."""

    SWAPS = {
        ast.Add: ast.Sub,
        ast.Sub: ast.Add,
        ast.Mult: ast.Add,
        ast.Lt: ast.LtE,
        ast.LtE: ast.Lt,
        ast.Gt: ast.GtE,
        ast.GtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
        ast.Is: ast.IsNot,
        ast.IsNot: ast.Is,
        ast.In: ast.NotIn,
        ast.NotIn: ast.In,
        ast.And: ast.Or,
        ast.Or: ast.And,
        ast.Mod: ast.Mult,
        ast.FloorDiv: ast.Div,
    }

    def __init__(self, target):
        self.target, self.seen = target, 0

    def hit(self):
        self.seen += 1
        return self.seen - 1 == self.target

    def visit_FunctionDef(self, node):
        node.args.defaults = [self.visit(default) for default in node.args.defaults]
        body = node.body
        start = 1 if ast.get_docstring(node) is not None else 0
        node.body = body[:start] + [self.visit(statement) for statement in body[start:]]
        return node

    def visit_arg(self, node):
        return node

    def visit_While(self, node):
        if not isinstance(node.test, ast.Constant):  # ``while True`` and ``while 1`` are the same
            node.test = self.visit(node.test)
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_JoinedStr(self, node):
        return node

    def generic_visit(self, node):
        node = super().generic_visit(node)
        kind = type(node)
        if kind is ast.Constant and self.hit():
            value = node.value
            if isinstance(value, bool) or value is None or value is Ellipsis:
                return ast.Constant("another")
            return ast.Constant(
                value
                + (
                    1
                    if isinstance(value, (int, float))
                    else value[:0] + ("x" if isinstance(value, str) else b"x")
                )
            )
        if kind in self.SWAPS and self.hit():
            return self.SWAPS[kind]()
        if kind is ast.Attribute and self.hit():
            node.attr += "_other"
        if kind is ast.Name and isinstance(node.ctx, ast.Load) and self.hit():
            node.id = "some_other_name"
        if kind is ast.Return and node.value is not None and self.hit():
            node.value = ast.Tuple([node.value, ast.Constant(1)], ast.Load())
        if kind is ast.If and self.hit():
            node.test = ast.UnaryOp(
                ast.Not(), ast.Call(ast.Name("bool", ast.Load()), [node.test], [])
            )
        if kind is ast.Call and node.args and self.hit():
            node.args = [*node.args, ast.Constant(1)]
        if kind is ast.Expr and not isinstance(node.value, ast.Constant) and self.hit():
            return ast.Expr(ast.Call(ast.Name("print", ast.Load()), [node.value], []))
        return node


def cosmetic(text, number):
    """The same function, written otherwise."""
    lines = text.splitlines()
    tree = ast.parse(text)
    function = tree.body[0]
    kind = number % 7
    if kind == 0:
        return "\n".join(
            line + "  # why"
            if not line.endswith("\\") and text.count('"""') == 0 and text.count("'''") == 0
            else line
            for line in lines
        )
    if kind == 1:
        return "# above\n\n\n" + text
    if kind == 2:
        if ast.get_docstring(function) is not None:
            function.body[0].value = ast.Constant("Says something else.")
        else:
            function.body.insert(0, ast.Expr(ast.Constant("Says something.")))
    elif kind == 3:
        for argument in function.args.args:
            argument.annotation = ast.Constant("int")
        function.returns = ast.Name("int", ast.Load())
    elif kind == 4:
        function.body.append(ast.Pass())
    elif kind == 5:
        function.name += "_renamed"
    else:
        function.decorator_list.append(ast.parse("(lambda f: f)", mode="eval").body)
    return ast.unparse(ast.fix_missing_locations(tree))


def load(folder, text, number):
    path = folder / f"mutant_{number}.py"
    path.write_text(text, encoding="utf-8")
    specification = importlib.util.spec_from_file_location("mutant", path)
    module = importlib.util.module_from_spec(specification)
    # A default may name what only its module has.
    module.__dict__.update(dict.fromkeys(_free_names(text)))
    specification.loader.exec_module(module)
    return next(
        item for item in vars(module).values() if getattr(item, "__module__", 0) == "mutant"
    )


def _free_names(text):
    function = ast.parse(text).body[0]
    defaults = [*function.args.defaults, *function.args.kw_defaults]
    return {
        node.id
        for default in defaults
        if default is not None
        for node in ast.walk(default)
        if isinstance(node, ast.Name)
    }


def test_generated_edits(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    chance = random.Random(7)
    originals = functions()
    missed, counted, done = [], [], [0, 0]
    number = 0
    while sum(done) < COUNT:
        number += 1
        text = chance.choice(originals)
        semantic = number % 2 == 0
        if semantic:
            counter = Semantic(-1)
            counter.visit(ast.parse(text))
            if not counter.seen:
                continue
            tree = Semantic(chance.randrange(counter.seen)).visit(ast.parse(text))
            edited = ast.unparse(ast.fix_missing_locations(tree))
        else:
            edited = cosmetic(text, number // 2)
        try:
            first, second = load(tmp_path, text, 2 * number), load(tmp_path, edited, 2 * number + 1)
        except (SyntaxError, TypeError, AttributeError, NameError):
            continue  # a default that cannot be evaluated outside of its module
        equal = same(fingerprint_function(first), fingerprint_function(second))
        done[semantic] += 1
        if semantic and equal:
            missed.append((text, edited))
        if not semantic and not equal:
            counted.append((text, edited))
    assert missed == []
    assert len(counted) <= 0.005 * done[0], counted[0]
