"""What remote executors share: the job directory, staging, the supervisor, and transports.

Plugins may import this package beside :mod:`chelate.api`. :class:`JobHost` speaks the job
protocol with one host over one :class:`Transport`. An executor that starts jobs on hosts itself
subclasses :class:`DirectExecutor`; one in front of a scheduler uses :meth:`JobHost.prepare` and
submits the returned commands. The protocol is described in ``docs/plugins/remote.md``.
"""

from __future__ import annotations

from chelate.remote.direct import DirectExecutor
from chelate.remote.environment import Environment
from chelate.remote.host import HostRefusalError, JobHost
from chelate.remote.local import LocalTransport
from chelate.remote.sights import (
    HostReport,
    Prepared,
    Sight,
    is_pack,
    job_id,
    job_key,
    key_on_host,
    observation,
    store_id,
)
from chelate.remote.slots import HostSlots
from chelate.remote.spool import Spool
from chelate.remote.transport import Completed, Transport, UnreachableError

__all__ = [
    "Completed",
    "DirectExecutor",
    "Environment",
    "HostRefusalError",
    "HostReport",
    "HostSlots",
    "JobHost",
    "LocalTransport",
    "Prepared",
    "Sight",
    "Spool",
    "Transport",
    "UnreachableError",
    "is_pack",
    "job_id",
    "job_key",
    "key_on_host",
    "observation",
    "store_id",
]
