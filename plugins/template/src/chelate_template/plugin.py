"""What the entry point names: the hooks, and nothing that is slow to import."""

from __future__ import annotations

from chelate.api import Executor, hookimpl

__all__ = ["chelate_register_executors"]


@hookimpl
def chelate_register_executors() -> list[type[Executor]]:
    """The executor of this package."""
    from chelate_template.executor import TemplateExecutor

    return [TemplateExecutor]
