"""Backends that outlive kernels: jobs that queue, run, end, are lost, come late or come twice.

A job runs its tasks one after the other; where workers claim, they claim each task by its key.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.universe import Universe

from chelate.contracts.executor import Capabilities, JobHandle, Limits, Outcome
from chelate.model import Reason

__all__ = ["MODELS", "TOMB", "Backend", "Instance", "Model"]

TOMB = -1
_COMMON: dict[str, Any] = {
    "run_batch": 4,
    "poll_min": 1.5,
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


_PACKS = {"gather": 3.0, "pack": 4, "max_in_flight": 12}
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
        "packs",
        Capabilities(
            find=True, idempotent=True, claims=True, listing=True, packing=True, cancel_task=True
        ),
        _limits(find_grace=8.0, **_PACKS),
        lag=6.0,
        late=60.0,
        claim=True,
    ),
    Model(
        "packs-lookup",
        Capabilities(find=True, packing=True),
        _limits(find_grace=31.0, **_PACKS),
        lag=10.0,
        late=20.0,
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
    keys: tuple[str, ...]
    store: str
    born: float
    process: Any = None
    state: str = "QUEUED"
    current: str = ""  # the task whose body runs
    over: set[str] = field(default_factory=set)  # tasks that it will not run (any more)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reason: Reason = Reason.CANCELLED_BY_BACKEND
    forgotten: bool = False  # gone without a trace, instead of being reported as killed
    hidden_until: float = 0.0
    released: bool = False

    @property
    def key(self) -> str:
        return self.keys[0]


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
        return JobHandle(instance.key, self.model.name, str(instance.number), {}, instance.keys)

    def of(self, handle: JobHandle) -> Instance:
        return self.instances[int(handle.native_id)]

    def deliver(self, keys: tuple[str, ...], store: str, process: Any = None) -> Instance:
        """A submission arrives."""
        known = self.keyed[keys[0]]
        if self.model.token and known:
            self._log(f"{keys[0]} is known already as {known[0].number}")
            return known[0]
        rng, now = self.universe.random, self.universe.now
        instance = Instance(len(self.instances), keys, store, now, process)
        instance.forgotten = rng.random() < 0.5 and not process
        self.instances.append(instance)
        for key in keys:
            self.keyed[key].append(instance)
        self.counts["packs"] += len(keys) > 1
        self._log(f"{' '.join(keys)} arrives as {instance.number}")
        self.universe.at(rng.uniform(0.0, 6.0), lambda: self._start(instance))
        return instance

    def deliver_late(self, keys: tuple[str, ...], store: str) -> None:
        """A submission that was thought lost is on its way."""
        self.on_its_way += 1
        self.counts["late"] += 1

        def arrive() -> None:
            self.on_its_way -= 1
            self.deliver(keys, store)

        self.universe.at(self.universe.random.uniform(1.0, self.model.late), arrive)

    # -- running ------------------------------------------------------------------------------

    def _start(self, instance: Instance) -> None:
        if instance.state != "QUEUED":
            return
        rng = self.universe.random
        instance.state = "RUNNING"
        if (
            self.model.capabilities.detached and rng.random() < 0.08
        ):  # the scheduler does not see it for a while
            instance.hidden_until = self.universe.now + rng.uniform(0.0, 10.0)
        self._next(instance)

    def _claims(self, instance: Instance, key: str) -> bool:
        """Whether the job may run the task, or say that it will not."""
        if not self.model.claim:
            return True
        if self.claims.setdefault(key, instance.number) == instance.number:
            return True
        instance.over.add(key)
        self.counts["twins"] += 1
        self._log(f"{instance.number} finds {key} claimed")
        return False

    def _next(self, instance: Instance) -> None:
        """Run the body of the next task, or end."""
        for key in instance.keys:
            if key in instance.over or not self._claims(instance, key):
                continue
            instance.current = key
            self.bodies.append(Body(key, instance.number, self.universe.now))
            self._log(f"{instance.number} runs the body of {key}")
            self.universe.at(self.span(key), lambda key=key: self._finish(instance, key))  # type: ignore[misc]
            self._changed()
            return
        self._over(instance, "ENDED" if instance.outcomes else "TWIN")

    def _body_ends(self, instance: Instance) -> None:
        for body in self.bodies if instance.current else ():
            if body.instance == instance.number and body.key == instance.current:
                body.ended = self.universe.now
        instance.current = ""

    def _over(self, instance: Instance, state: str) -> None:
        instance.state = state
        self._body_ends(instance)
        self._log(f"{instance.number} is {state} ({instance.key})")
        self._changed()

    def _kill(self, instance: Instance, reason: Reason) -> None:
        """The job is gone. Of a pack the backend may say itself what became of each task."""
        instance.reason = reason
        told = len(instance.keys) > 1 and not instance.forgotten and instance.number % 2
        for key in instance.keys if told else ():
            if key not in instance.over and self._claims(instance, key):
                instance.outcomes[key] = Outcome(key, False, reason=reason, error="killed")
        self._over(instance, "ENDED" if told and instance.outcomes else "KILLED")

    def _finish(self, instance: Instance, key: str) -> None:
        if instance.state != "RUNNING" or instance.current != key:
            return
        if self.universe.chance(0.06):
            reasons = (Reason.OOM, Reason.NODE_FAIL, Reason.PREEMPTED)
            self._kill(instance, self.universe.random.choice(reasons))
            return
        self._body_ends(instance)
        self._told(instance, self.outcome(key))

    def _told(self, instance: Instance, outcome: Outcome) -> None:
        """A task of a job is over, by its end or by a cancel."""
        instance.outcomes[outcome.key] = outcome
        instance.over.add(outcome.key)
        if instance.state == "RUNNING" and not instance.current:
            self._next(instance)

    # -- stopping -----------------------------------------------------------------------------

    def _obeys(self, instance: Instance, force: bool) -> bool:
        if instance.state not in ("QUEUED", "RUNNING"):
            return False
        if self.universe.chance(0.2) or (not force and self.universe.random.random() < 0.3):
            self._log(f"{instance.number} ignores the request to stop")
            return False
        return True

    def _soon(self, what: Callable[[], None]) -> None:
        rng = self.universe.random
        self.universe.at(rng.choice((0.0, rng.uniform(0.0, 3.0))), what)

    def stop(self, instance: Instance, force: bool) -> None:
        """A request to cancel, which may be late or ignored."""

        def gone() -> None:
            if instance.state in ("QUEUED", "RUNNING"):
                self._kill(instance, Reason.CANCELLED_BY_BACKEND)

        if self._obeys(instance, force):
            self._soon(gone)

    def stop_tasks(self, instance: Instance, keys: Iterable[str], force: bool) -> None:
        """A request to cancel some tasks of a pack; the others go on."""

        def gone(key: str) -> None:
            if instance.state not in ("QUEUED", "RUNNING") or key in instance.over:
                return
            if self._claims(instance, key):
                self.counts["dropped"] += 1
                if instance.current == key:
                    self._body_ends(instance)
                self._log(f"{instance.number} drops {key}")
                self._told(instance, Outcome(key, False, reason=Reason.CANCELLED_BY_USER))

        for key in keys:
            if self._obeys(instance, force):
                self._soon(lambda key=key: gone(key))  # type: ignore[misc]

    def process_died(self, process: Any) -> None:
        for instance in self.instances:
            if instance.process is process and instance.state in ("QUEUED", "RUNNING"):
                self._kill(instance, Reason.LOST)

    def living(self) -> list[str]:
        """Keys of tasks whose body runs or may still run."""
        return [
            key
            for instance in self.instances
            if instance.state in ("QUEUED", "RUNNING")
            for key in instance.keys
            if key == instance.current
            or (
                key not in instance.over
                and self.claims.get(key, instance.number) == instance.number
            )
        ]
