"""Frames from the agent: found behind whatever a login shell prints first."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from typing import Any

from chelate.api import TransientError

__all__ = ["MARK", "Reader", "frames_of"]

MARK = b"\x1e\x1echelate 1\x1e\n"  # as in shipped/agent.py
_HEAD = struct.Struct("<I")
_LARGEST = 64 << 20
_NOISE = 1 << 20


class Reader:
    """Takes frames, and the bytes behind them, out of pieces of any size.

    Raises TransientError when the stream ends too early or is no stream of frames.
    """

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = bytearray()
        self._begun = False

    async def _more(self) -> None:
        try:
            self._buffer += await self._pieces.__anext__()
        except StopAsyncIteration:
            raise TransientError("The host's answer was cut off.") from None

    async def frame(self) -> dict[str, Any]:
        """The next frame."""
        while not self._begun:
            at = self._buffer.find(MARK)
            if at >= 0:
                del self._buffer[: at + len(MARK)]
                self._begun = True
            elif len(self._buffer) > _NOISE:
                raise TransientError("The host printed a lot, but no answer.")
            else:
                await self._more()
        size = _HEAD.unpack(await self.exactly(_HEAD.size))[0]
        if size > _LARGEST:
            raise TransientError("The host's answer cannot be read.")
        document: dict[str, Any] = json.loads(await self.exactly(size))
        return document

    async def drain(self) -> None:
        """Read to the end of the stream, so that its command ends by itself."""
        async for _ in self._pieces:
            self._buffer.clear()

    async def exactly(self, size: int) -> bytes:
        """So many bytes at once."""
        while len(self._buffer) < size:
            await self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def body(self, size: int) -> AsyncIterator[bytes]:
        """So many bytes in pieces, in bounded memory."""
        while size:
            if not self._buffer:
                await self._more()
            data = bytes(self._buffer[:size])
            del self._buffer[: len(data)]
            size -= len(data)
            yield data


def frames_of(data: bytes) -> list[dict[str, Any]] | None:
    """Every frame of a short answer; None when it holds no complete answer."""
    at = data.find(MARK)
    if at < 0:
        return None
    at += len(MARK)
    frames: list[dict[str, Any]] = []
    while at + _HEAD.size <= len(data):
        size = _HEAD.unpack_from(data, at)[0]
        at += _HEAD.size
        if at + size > len(data):
            return None
        frames.append(json.loads(data[at : at + size]))
        at += size
        if "end" in frames[-1]:
            return frames
    return None
