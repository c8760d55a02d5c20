"""Plugins import chelate.api and chelate.remote, in tests chelate.testing too; nothing else."""

from __future__ import annotations

from tests.house.layout import ROOT, imported_names, tree


def test_plugins_import_the_api_only() -> None:
    wrong = []
    for path in sorted(ROOT.glob("plugins/*/**/*.py")):
        inside = path.relative_to(ROOT / "plugins").parts
        if any(part.startswith(".") or part in ("build", "dist") for part in inside):
            continue
        allowed: tuple[str, ...] = ("chelate.api", "chelate.remote")
        if "tests" in inside:
            allowed = ("chelate", "chelate.api", "chelate.remote", "chelate.testing")
        for name, line, _ in imported_names(tree(path), inside[-1]):
            if name.split(".")[0] != "chelate":
                continue
            top = "chelate" if "chelate" in allowed else None
            module = ".".join(name.split(".")[:2])
            if module not in allowed and not (top and name.count(".") <= 1):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)
