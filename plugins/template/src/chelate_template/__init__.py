"""An executor for chelate to copy: it runs each task through a launcher command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chelate_template.executor import TemplateExecutor as TemplateExecutor

__all__ = ["TemplateExecutor"]


def __getattr__(name: str) -> Any:
    # Listing plugins imports this package, which must stay cheap.
    if name == "TemplateExecutor":
        from chelate_template.executor import TemplateExecutor

        return TemplateExecutor
    raise AttributeError(f"module 'chelate_template' has no attribute {name!r}")
