"""Content digests: BLAKE2b-256 in hex, the one hash of a store.

BLAKE2b (RFC 7693) is in the standard library and outruns SHA-256 on processors without hash
instructions, which is what makes hashing large results affordable.
"""

from __future__ import annotations

import hashlib
import re
from typing import BinaryIO

__all__ = ["DIGEST_BYTES", "digest_bytes", "digest_stream", "is_digest"]

DIGEST_BYTES = 32
_PATTERN = re.compile(r"[0-9a-f]{64}")


def digest_bytes(data: bytes | bytearray | memoryview) -> str:
    """The digest of ``data`` as 64 hexadecimal characters."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def digest_stream(stream: BinaryIO, chunk: int = 1 << 20) -> str:
    """The digest of everything left in ``stream``, read ``chunk`` bytes at a time."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    while data := stream.read(chunk):
        state.update(data)
    return state.hexdigest()


def is_digest(text: object) -> bool:
    """Whether ``text`` has the form of a digest, so it may become part of a path."""
    return isinstance(text, str) and _PATTERN.fullmatch(text) is not None
