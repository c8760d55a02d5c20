"""Backends that outlive kernels: jobs that queue, run, end, are lost, come late or come twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.universe import Universe

from chelate.contracts.executor import Capabilities, JobHandle, Limits, Outcome
from chelate.model import Reason

__all__ = ["MODELS", "TOMB", "Backend", "Instance", "Model"]

TOMB = -1
_COMMON: dict[str, Any] = {
    "run_batch": 4,
    "poll_min": 1.0,
    "poll_max": 8.0,
    "call_timeout": 10.0,
    "absent_grace": 15.0,
    "cancel_grace": 4.0,
}


@dataclass(frozen=True)
class Model:
    """A kind of backend.

    ``lag`` is how long a submission stays invisible to look-ups, ``late`` the longest delivery;
    ``token``: the backend joins submissions of one key; ``claim``: the worker does.
    """

    name: str
    capabilities: Capabilities
    limits: Limits
    lag: float = 0.0
    late: float = 0.0
    token: bool = False
    claim: bool = False

    @property
    def certain(self) -> bool:
        """Whether a look-up or a claim can tell for certain what became of an attempt."""
        return self.capabilities.find or self.capabilities.claims


def _limits(**changes: Any) -> Limits:
    return Limits(**{**_COMMON, **changes})


_ALL = [
    Model(
        "lookup",
        Capabilities(find=True),
        _limits(find_grace=31.0),
        lag=10.0,
        late=20.0,
    ),
    Model(
        "token",
        Capabilities(find=True, idempotent=True),
        _limits(find_grace=31.0),
        lag=10.0,
        late=20.0,
        token=True,
    ),
    Model("blind", Capabilities(), _limits(), late=60.0),
    Model(
        "claims",
        Capabilities(find=True, idempotent=True, claims=True, listing=True),
        _limits(find_grace=8.0),
        lag=6.0,
        late=60.0,
        claim=True,
    ),
    Model(
        "claims-only",
        Capabilities(idempotent=True, claims=True, listing=True),
        _limits(find_grace=0.0),
        late=60.0,
        claim=True,
    ),
    Model(
        "local",
        Capabilities(detached=False, find=True, push=True),
        _limits(poll_min=0.0, absent_grace=0.0, find_grace=0.0, max_in_flight=64, run_batch=64),
    ),
]
MODELS = {model.name: model for model in _ALL}


@dataclass(slots=True)
class Instance:
    """One job as the backend holds it. ``state`` is one of QUEUED, RUNNING, ENDED, KILLED, TWIN."""

    number: int
    key: str
    store: str
    born: float
    process: Any = None
    state: str = "QUEUED"
    outcome: Outcome | None = None
    reason: Reason = Reason.CANCELLED_BY_BACKEND
    forgotten: bool = False  # gone without a trace, instead of being reported as killed
    hidden_until: float = 0.0
    released: bool = False


@dataclass
class Body:
    """One run of a task's body."""

    key: str
    instance: int
    began: float
    ended: float = float("inf")


@dataclass
class Backend:
    """``outcome`` decides how the body of a key ends, ``span`` how many seconds it takes."""

    universe: Universe
    model: Model
    outcome: Callable[[str], Outcome]
    span: Callable[[str], float]
    instances: list[Instance] = field(default_factory=list)
    keyed: dict[str, list[Instance]] = field(default_factory=lambda: defaultdict(list))
    claims: dict[str, int] = field(default_factory=dict)
    bodies: list[Body] = field(default_factory=list)
    listeners: list[Callable[[], None]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    on_its_way: int = 0

    def _log(self, text: str) -> None:
        self.universe.log(f"{self.model.name}: {text}")

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()

    def handle(self, instance: Instance) -> JobHandle:
        return JobHandle(instance.key, self.model.name, str(instance.number), {}, (instance.key,))

    def of(self, handle: JobHandle) -> Instance:
        return self.instances[int(handle.native_id)]

    def deliver(self, key: str, store: str, process: Any = None) -> Instance:
        """A submission arrives."""
        known = self.keyed[key]
        if self.model.token and known:
            self._log(f"{key} is known already as {known[0].number}")
            return known[0]
        rng, now = self.universe.random, self.universe.now
        instance = Instance(len(self.instances), key, store, now, process)
        instance.forgotten = rng.random() < 0.5 and not process
        self.instances.append(instance)
        known.append(instance)
        self._log(f"{key} arrives as {instance.number}")
        self.universe.at(rng.uniform(0.0, 6.0), lambda: self._start(instance))
        return instance

    def deliver_late(self, key: str, store: str) -> None:
        """A submission that was thought lost is on its way."""
        self.on_its_way += 1
        self.counts["late"] += 1

        def arrive() -> None:
            self.on_its_way -= 1
            self.deliver(key, store)

        self.universe.at(self.universe.random.uniform(1.0, self.model.late), arrive)

    def _start(self, instance: Instance) -> None:
        if instance.state != "QUEUED":
            return
        key = instance.key
        if self.model.claim and self.claims.setdefault(key, instance.number) != instance.number:
            instance.state = "TWIN"
            self.counts["twins"] += 1
            self._log(f"{instance.number} finds {key} claimed and ends")
            self._changed()
            return
        rng = self.universe.random
        instance.state = "RUNNING"
        self.bodies.append(Body(key, instance.number, self.universe.now))
        self._log(f"{instance.number} runs the body of {key}")
        self.universe.at(self.span(key), lambda: self._finish(instance))
        if (
            self.model.capabilities.detached and rng.random() < 0.08
        ):  # the scheduler does not see it for a while
            instance.hidden_until = self.universe.now + rng.uniform(0.0, 10.0)
        self._changed()

    def _over(self, instance: Instance, state: str) -> None:
        instance.state = state
        for body in self.bodies:
            if body.instance == instance.number:
                body.ended = self.universe.now
        self._log(f"{instance.number} is {state} ({instance.key})")
        self._changed()

    def _finish(self, instance: Instance) -> None:
        if instance.state != "RUNNING":
            return
        if self.universe.chance(0.06):
            instance.reason = self.universe.random.choice(
                (Reason.OOM, Reason.NODE_FAIL, Reason.PREEMPTED)
            )
            self._over(instance, "KILLED")
            return
        instance.outcome = self.outcome(instance.key)
        self._over(instance, "ENDED")

    def stop(self, instance: Instance, force: bool) -> None:
        """A request to cancel, which may be late or ignored."""
        rng = self.universe.random
        if instance.state not in ("QUEUED", "RUNNING"):
            return
        if self.universe.chance(0.2) or (not force and rng.random() < 0.3):
            self._log(f"{instance.number} ignores the request to stop")
            return

        def gone() -> None:
            if instance.state in ("QUEUED", "RUNNING"):
                self._over(instance, "KILLED")

        self.universe.at(rng.choice((0.0, rng.uniform(0.0, 3.0))), gone)

    def process_died(self, process: Any) -> None:
        for instance in self.instances:
            if instance.process is process and instance.state in ("QUEUED", "RUNNING"):
                instance.reason = Reason.LOST
                self._over(instance, "KILLED")

    def living(self) -> list[Instance]:
        """Jobs that run or may still run their body."""
        return [
            instance
            for instance in self.instances
            if instance.state == "RUNNING"
            or (
                instance.state == "QUEUED"
                and self.claims.get(instance.key, instance.number) == instance.number
            )
        ]
