"""A proxy before Postgres's Unix socket that loses connections at COMMIT.

::

    with CommitCutter(server.folder) as proxy:
        url = url.replace(str(server.folder), str(proxy.folder))
        proxy.cut(before=True)    # the next COMMIT never reaches the server
        proxy.cut(before=False)   # it is carried out, and its answer is lost
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

__all__ = ["CommitCutter"]

_NAME = ".s.PGSQL.5432"


class CommitCutter:
    """Forwards to the socket in ``target``; ``cuts`` counts the connections it has lost."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = Path(tempfile.mkdtemp(prefix="pgp-"))
        self.cuts = 0
        self._armed: bool | None = None
        self._guard = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> CommitCutter:
        self._listener.bind(str(self.folder / _NAME))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        shutil.rmtree(self.folder)

    def cut(self, *, before: bool) -> None:
        """Lose the connection of the next COMMIT, before or after the server has seen it."""
        self._armed = before

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            deaf = threading.Event()
            try:
                server.connect(str(self.target / _NAME))
                back = threading.Thread(target=self._back, args=(server, client, deaf), daemon=True)
                back.start()
                while data := client.recv(1 << 16):
                    if b"COMMIT" in data and (armed := self._disarm()) is not None:
                        deaf.set()
                        if not armed:
                            server.sendall(data)
                            deaf.wait()
                            back.join(5)
                        break
                    server.sendall(data)
            except OSError:
                pass  # one side has gone, and so goes the other
            for side in (client, server):
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def _disarm(self) -> bool | None:
        with self._guard:
            armed, self._armed = self._armed, None
            self.cuts += armed is not None
            return armed

    def _back(self, server: socket.socket, client: socket.socket, deaf: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if deaf.is_set():
                    return  # the answer to the COMMIT, which nobody gets
                client.sendall(data)
