"""An executor made of DirectExecutor, whose hosts are all this machine under several names."""

from __future__ import annotations

import sys
from pathlib import Path

from chelate.remote import DirectExecutor, Environment, HostSlots, JobHost, LocalTransport


class Named(LocalTransport):
    """This machine under another name, so that several hosts can be told apart."""

    def __init__(self, name: str):
        super().__init__()
        self.host = name


class Box(DirectExecutor):
    """Hosts ``root/<name>``; each has ``slots``."""

    name = "box"

    def __init__(
        self, *, root: str, names: list[str] | None = None, slots: int = 2, gpus: int = 0,
        environment: dict | None = None, results: str = "host",
    ) -> None:  # fmt: skip
        self.root = root
        self.names = names or ["here"]
        self.slots = slots
        self.gpus = gpus
        self.environment = environment
        self.results = results

    def hosts(self):
        return [
            HostSlots(
                JobHost(
                    Named(name),
                    root=str(Path(self.root) / name),
                    environment=Environment.of(self.environment or {"python": sys.executable}),
                    grace=0.5,
                    results=self.results,
                ),
                slots=self.slots,
                gpus=self.gpus,
            )
            for name in self.names
        ]
