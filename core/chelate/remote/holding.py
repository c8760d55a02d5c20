"""Results that stay on a host until somebody needs them elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from chelate.api import BlobMissingError
from chelate.remote.sights import job_id
from chelate.remote.wire import Reader

if TYPE_CHECKING:
    from chelate.remote.host import JobHost

__all__ = ["HOLD", "fetch"]

HOLD = 30 * 86400.0  # seconds after its last use for which a result that stayed is kept


async def fetch(host: JobHost, key: str, digest: str, target: Path) -> None:
    """The rest of a value, behind what ``target`` has already; the host need keep it no longer.

    Raises:
        BlobMissingError: the host has it no more.
        TransientError: the stream was cut.
    """
    report = await host.probe()
    offset = target.stat().st_size if target.exists() else 0
    request = json.dumps({"digest": digest, "offset": offset}).encode()
    pieces = host.transport.stream([*report.agent, "value"], b"%d\n%b" % (len(request), request))
    try:
        reader = Reader(pieces)
        frame = host.checked(await reader.frame())
        if frame["size"] < 0:
            raise BlobMissingError(
                f"The value {digest} stayed on {host.transport.host} and is no longer there."
            )
        with target.open("r+b" if offset else "wb") as file:
            file.seek(frame["offset"])
            file.truncate()
            async for piece in reader.body(frame["size"]):
                file.write(piece)
        host.checked(await reader.frame())
        await reader.drain()
    finally:
        close = getattr(pieces, "aclose", None)  # of a generator, which most are
        if close is not None:
            await close()
    # Until it is stored here, it is an ordinary value there: kept for a while after this use.
    await host.call("let_go", {"digest": digest, "job": job_id(key)})
