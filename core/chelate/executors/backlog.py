"""Tasks that wait for a worker, apart by the stored code that they need."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from chelate.executors.record import Record

__all__ = ["Backlog"]


class Backlog:
    """One queue per code. A worker has the code of one snapshot, or none, from start to end."""

    def __init__(self) -> None:
        self._queues: dict[str | None, deque[Record]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[Record]:
        for queue in self._queues.values():
            yield from queue

    def add(self, record: Record) -> None:
        """At the end of its queue."""
        self._of(record).append(record)

    def put_back(self, record: Record) -> None:
        """At the head of its queue."""
        self._of(record).appendleft(record)

    def _of(self, record: Record) -> deque[Record]:
        code = record.job.code
        queue = self._queues.get(code)
        if queue is None:
            queue = self._queues[code] = deque()
        return queue

    def queue(self, code: str | None) -> deque[Record] | None:
        """Those that need this code, the first of them not ended; None when there are none."""
        queue = self._queues.get(code)
        if queue is None:
            return None
        while queue and queue[0].final:
            queue.popleft()
        if not queue:
            del self._queues[code]
            return None
        return queue

    def codes(self) -> list[str | None]:
        """What is needed, the one whose first task has waited longest first."""
        if len(self._queues) == 1:
            return list(self._queues)
        heads = {
            code: queue[0].queued_at for code in list(self._queues) if (queue := self.queue(code))
        }
        return sorted(heads, key=heads.__getitem__)

    def clear(self) -> None:
        """Forget all."""
        self._queues.clear()
