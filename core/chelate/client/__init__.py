"""The client column: what runs in the user's process and in workers that build graphs.

Import from its modules: a task that only asks for its context should not load the rest.
"""

from __future__ import annotations

__all__: list[str] = []
