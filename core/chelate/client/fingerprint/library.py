"""Whose code is it: the user's, an installed package's, or Python's own."""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig

__all__ = ["distribution", "is_library_file", "is_library_module", "library_place"]


@functools.lru_cache(maxsize=1)
def _roots() -> list[tuple[str, bool]]:
    """Folders of installed code, longest first, each with whether it is Python's own."""
    paths = sysconfig.get_paths()
    packages = {paths["purelib"], paths["platlib"], *site.getsitepackages()}
    if site.ENABLE_USER_SITE:
        packages.add(site.getusersitepackages())
    own = {paths["stdlib"], paths["platstdlib"]}
    # A virtual environment keeps its packages here and borrows the standard library from there.
    own.add(os.path.dirname(os.__file__))  # noqa: PTH120
    found = [(os.path.realpath(path) + os.sep, False) for path in packages]
    found += [(os.path.realpath(path) + os.sep, True) for path in own]
    return sorted(found, key=lambda root: (-len(root[0]), root[1]))


@functools.lru_cache(maxsize=4096)
def library_place(filename: str) -> tuple[str, bool] | None:
    """Where below its library a file is, and whether that is Python's own; None for user code."""
    if filename.startswith("<frozen "):
        return filename, True
    if filename.startswith("<"):
        return None
    path = os.path.realpath(filename)
    for root, own in _roots():
        if path.startswith(root):
            return path[len(root) :].replace(os.sep, "/"), own
    return None


def is_library_file(filename: str) -> bool:
    """Whether a file belongs to Python or to an installed (not editable) package."""
    return library_place(filename) is not None


@functools.lru_cache(maxsize=4096)
def _module_file(name: str) -> str | None:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None:
        spec = getattr(module, "__spec__", None)
        folders = list(getattr(spec, "submodule_search_locations", None) or ())
        file = os.path.join(folders[0], "__init__.py") if folders else None  # noqa: PTH118
    return file


def is_library_module(name: str) -> bool:
    """Whether a loaded module is Python's own, built in, or part of an installed package."""
    top = name.partition(".")[0]
    if (top in sys.stdlib_module_names and name != "__main__") or top == "chelate":
        return True  # chelate's own classes are no one's task, wherever it lies
    if name == "__main__" or name not in sys.modules:
        return False
    file = _module_file(name)
    return file is not None and is_library_file(file)


@functools.lru_cache(maxsize=1)
def _providers() -> dict[str, list[str]]:
    import importlib.metadata

    return {top: list(names) for top, names in importlib.metadata.packages_distributions().items()}


@functools.lru_cache(maxsize=1024)
def distribution(top: str) -> tuple[str, str]:
    """Name and version of the distribution that provides a top-level module.

    Python's own modules have the version "": a Python of another version is no other code.
    """
    if top in sys.stdlib_module_names:
        return "python", ""
    import importlib.metadata  # slow to load, and most tasks need it not

    try:
        return top, importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        names = _providers().get(top)
    if names:
        return names[0], importlib.metadata.version(names[0])
    return top, str(getattr(sys.modules.get(top), "__version__", ""))
