"""The driver's loop over Ray actors: each is given a few units at a time; what is lost with one goes to another.

Ray restarts an actor whose process or node died, wherever there is room for it, and starts those that had no room so
far as soon as a node joins. What Ray has no notion of is here: which units are whose, how often one may fail, and for
how long a worker may be silent.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

import ray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from manifests.errors import PipelineError
from pipeline.stopping import Stop

ATTEMPTS: Final = 4  # of a unit; the last failure ends the run
TICK: Final = 1.0  # seconds between looks at clocks, and between questions to an actor that is being restarted
PATIENCE: Final = 60.0  # seconds without any worker, after which (and again and again) the user is told
GONE: Final = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError)  # the process, with all it was doing
_log = logging.getLogger(__name__)


class Actor:
    """What runs in a process of its own. `life` tells the processes that one actor has had apart."""

    def __init__(self, make_worker: Callable[[], Any]) -> None:
        self.make_worker, self.worker, self.life, self.lock = make_worker, None, uuid.uuid4().hex, Lock()

    def ready(self) -> str:
        with self.lock:
            self.worker = self.worker or self.make_worker()
        return self.life

    def run(self, unit: Any) -> dict[str, Any]:
        self.ready()
        assert self.worker is not None
        return self.worker.run(unit)


@dataclass(eq=False, slots=True)
class Task:
    """A unit, and how it fared."""

    unit: Any
    failures: int = 0
    last: Member | None = None
    """Who failed with it last: somebody else tries next."""


@dataclass(eq=False, slots=True)
class Member:
    """An actor as the driver sees it."""

    name: str
    actor: Any
    life: str = ""
    """Of the process that answered last."""
    killed: str = ""
    """Life of the process that was told to end; it may still answer once."""
    ready: bool = False
    tasks: dict[Any, Task] = field(default_factory=dict)
    """What it is doing, by Ray's reference to the report; oldest first."""
    since: float = 0.0
    """When it last ended a unit, or was given one after a rest (time.monotonic)."""


class Crew:
    """All actors of a run, and the units that are left.

    in_flight: units of an actor at a time.  deadline: seconds for which an actor may be busy without ending a unit.
    counts: "restarts" of workers and "retries" of units are added up here.
    """

    def __init__(
        self,
        make_worker: Callable[[], Any],
        units: Sequence[Any],
        *,
        workers: int,
        in_flight: int,
        deadline: float | None,
        counts: Counter[str],
        **options: Any,
    ) -> None:
        self.left = deque(Task(unit) for unit in units)
        self.in_flight, self.deadline, self.counts, self.options = in_flight, deadline, counts, options
        self.error: PipelineError | None = None
        self.reason = "none has started"
        self.since = time.monotonic()
        remote: Any = ray.remote(Actor)
        remote = remote.options(max_concurrency=in_flight, max_restarts=-1, max_task_retries=0, **options)
        self.members = [Member(f"worker {i}", remote.remote(make_worker)) for i in range(min(workers, len(units)))]
        self.probes = {member.actor.ready.remote(): member for member in self.members}
        self.absent: dict[Member, float] = {}  # and when to ask again

    def run(self, stop: Stop) -> Iterator[dict[str, Any]]:
        """Reports as they come. After `stop`, or an error, what is in flight is still finished and reported.

        Raises KeyboardInterrupt if `stop` left units undone, else the first PipelineError.
        """
        while True:
            if ending := bool(self.error or stop.asked):
                pass
            elif self.left and not self.members:
                raise PipelineError(f"no worker is left ({self.reason}); see the workers' logs under /tmp/ray")
            else:
                self._assign()
            running = {ref: member for member in self.members for ref in member.tasks}
            if not running and (ending or not self.left):
                break
            done, _ = ray.wait([*running, *self.probes], num_returns=1, timeout=TICK)
            for ref in done:
                if ref in running:
                    yield from self._ended(running[ref], ref)
                else:
                    self._answered(self.probes.pop(ref), ref)
            self._look_at_clocks()
        if self.error:
            raise self.error
        if self.left:
            raise KeyboardInterrupt

    def _assign(self) -> None:
        """Give out units, evenly: everybody's second one comes after everybody's first."""
        free = [member for member in self.members if member.ready]
        for depth in range(self.in_flight):
            for member in free:
                others = (task for task in self.left if task.last is not member or len(free) == 1)
                if len(member.tasks) > depth or (task := next(others, None)) is None:
                    continue
                self.left.remove(task)
                if not member.tasks:
                    member.since = time.monotonic()
                member.tasks[member.actor.run.remote(task.unit)] = task

    def _answered(self, member: Member, probe: Any) -> None:
        """A process of an actor is there, or there will be none."""
        try:
            life = ray.get(probe)
            if life == member.killed:
                raise ActorUnavailableError("it is being killed", member.actor._actor_id.binary())
        except ActorUnavailableError as error:
            self.reason = _reason(error)
            self.absent[member] = time.monotonic() + TICK
        except RayError as error:
            self.reason = _reason(error)
            self.members.remove(member)
            ray.kill(member.actor)
            if isinstance(cause := getattr(error, "cause", None), PipelineError):
                self.error = self.error or cause
            _log.warning("%s can not be started (%s); %d left", member.name, self.reason, len(self.members))
        else:
            member.life, member.ready = life, True

    def _ended(self, member: Member, ref: Any) -> Iterator[dict[str, Any]]:
        """The report of a unit; nothing, and the consequences, if it failed."""
        task = member.tasks.pop(ref)
        member.since = self.since = time.monotonic()
        try:
            report = ray.get(ref)
        except GONE as error:
            if member.ready:
                self._rejoin(member)
            self._failed(member, task, _reason(error))
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, PipelineError):  # the user's matter: trying again would not help
                self.error = self.error or cause
                self.left.appendleft(task)
                return
            # what else a worker raises (of CUDA, of a network disk) may have spoilt its whole process
            self._failed(member, task, _reason(error))
            self._restart(member)
        else:
            yield report

    def _failed(self, member: Member, task: Task, reason: str) -> None:
        """Back to the front of the queue, unless it was the last attempt."""
        task.failures, task.last = task.failures + 1, member
        self.left.appendleft(task)
        if task.failures < ATTEMPTS:
            self.counts["retries"] += 1
            _log.warning("%s failed in %s (%s); it is tried again", task.unit, member.name, reason)
            return
        self.error = self.error or PipelineError(
            f"{task.unit} failed {task.failures} times, the last time with {reason}; --local shows the whole "
            "traceback, the workers' logs are under /tmp/ray; use fewer --workers if memory ran out; what was "
            "committed is kept, run the same command again to go on"
        )

    def _restart(self, member: Member) -> None:
        """Kill its process; what else was in flight there is nobody's fault."""
        if not member.ready:  # it is gone already
            return
        for task in reversed(member.tasks.values()):
            self.left.appendleft(task)
        member.tasks, member.killed = {}, member.life
        ray.kill(member.actor, no_restart=False)
        self._rejoin(member)

    def _rejoin(self, member: Member) -> None:
        self.counts["restarts"] += 1
        member.ready = False
        self.absent[member] = time.monotonic() + TICK

    def _look_at_clocks(self) -> None:
        now = time.monotonic()
        for member in [member for member, then in self.absent.items() if now >= then]:
            del self.absent[member]
            self.probes[member.actor.ready.remote()] = member
        for member in self.members:
            if member.tasks and self.deadline and now - member.since > self.deadline:
                oldest = member.tasks.pop(next(iter(member.tasks)))
                self._failed(member, oldest, f"nothing done for {self.deadline / 60:.3g} minutes")
                self._restart(member)
        if any(member.tasks for member in self.members):
            self.since = now
        elif now - self.since > PATIENCE:
            self.since = now
            have = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            needs = f"each needs {self.options}, the cluster has {have} in all"
            _log.warning("waiting for a worker (%s); %s", self.reason, needs)


def _reason(error: RayError) -> str:
    """One line; what a worker raised as it was raised there."""
    if isinstance(error, RayActorError | WorkerCrashedError | NodeDiedError):
        return f"its process or its node is gone ({type(error).__name__})"
    cause = getattr(error, "cause", None)
    raised = cause if isinstance(cause, BaseException) else error
    return f"{type(raised).__name__}: {raised}".partition("\n")[0].strip()
