"""A checkout installs as it is, also with uv, which wants to be told what a workspace shares."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

from tests.house.layout import ROOT


def table(path: Any) -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads(path.read_text(encoding="utf-8"))


def needs(project: dict[str, Any]) -> set[str]:
    groups = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    return {re.split(r"[^A-Za-z0-9_.-]", line)[0] for group in groups for line in group}


def test_what_members_need_of_each_other_comes_from_the_checkout() -> None:
    root = table(ROOT / "pyproject.toml")
    projects = [table(path)["project"] for path in ROOT.glob("plugins/*/pyproject.toml")]
    members = {project["name"] for project in [root["project"], *projects]}
    shared = set().union(*map(needs, projects)) & members
    assert {name: {"workspace": True} for name in shared} == root["tool"]["uv"]["sources"]
