"""The executors that come with chelate."""

from __future__ import annotations

__all__: list[str] = []
