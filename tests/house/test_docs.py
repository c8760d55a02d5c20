"""What the documents say exists, exists; and what exists is documented."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re

import pytest
from tests.house.layout import ROOT, modules

from chelate import errors
from chelate.contracts import hookspecs
from chelate.settings import Settings, default_home

DOCS = ROOT / "docs"
HOOKS = [name for name in hookspecs.__all__ if name != "hookimpl"]


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_are_documented_with_their_signature(hook: str) -> None:
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    assert f"## `{hook}({arguments})`\n" in read("plugins/hooks.md")


def test_no_hook_is_documented_that_is_not_there() -> None:
    assert set(re.findall(r"\bchelate_[a-z_]+(?=\()", read("plugins/hooks.md"))) <= set(HOOKS)


def test_settings_are_documented_with_their_defaults() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", read("user/configuration.md"), re.M))
    expected = {}
    for item in dataclasses.fields(Settings):
        default = item.default
        if item.default_factory is default_home:
            default = "…/chelate"
        elif item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        expected[item.name] = str(default).replace("()", "[]")
    assert rows == expected
    for name in expected:
        assert f"`CHELATE_{name.upper()}`" in read("user/configuration.md")


def test_errors_are_documented_with_their_bases() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", read("user/errors.md"), re.M))
    for name in errors.__all__:
        bases = ", ".join(f"`{base.__name__}`" for base in getattr(errors, name).__bases__)
        assert rows.pop(name, "missing").strip() == bases, name
    assert not rows, "documented, but not there"


def test_commands_are_documented() -> None:
    if "chelate.cli" not in modules():
        return
    typer = importlib.import_module("typer")
    cli = importlib.import_module("chelate.cli")
    app = next(value for value in vars(cli).values() if isinstance(value, typer.Typer))
    commands = typer.main.get_command(app).commands
    text = read("user/cli.md")
    assert not [name for name in commands if f"## `chelate {name}" not in text]


@pytest.mark.parametrize(
    "path",
    sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_lead_somewhere(path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    lost = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not lost, f"{path.relative_to(ROOT)} links to {lost}"
