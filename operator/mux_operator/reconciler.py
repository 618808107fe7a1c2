"""The reconcile loop: observe, snapshot, plan, decide, act, report; the same for every door.

Level-triggered: a mark says which pool to look at, never what happened. A cycle that fails is
repeated after a pause; what it had done is found done. Nothing is remembered here that a restart
would miss, except measured rates and the pauses of units that keep dying.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from mux_core.actions import (
    Action,
    ApplyUnit,
    EnsureService,
    ForgetUnit,
    InspectModel,
    PublishRoutes,
    StartUnit,
    StopUnit,
    Why,
    WriteUnit,
)
from mux_core.comparison import figures, specs_in_force
from mux_core.comparison import seen as got
from mux_core.decide import decide
from mux_core.errors import MuxError, PeerError, SpecError
from mux_core.planning import Choice, stay
from mux_core.pool_verdicts import Outcome
from mux_core.problem import Question, question
from mux_core.rates import observed, rates, without
from mux_core.snapshot import CarrierState, Observation, Snapshot, Subject, UnitAddress
from mux_core.specs import PoolKey
from mux_core.status import MeasuredDemand
from mux_core.units import ModelName, UnitId
from mux_core.unread import with_unread
from mux_core.verdicts import statuses
from mux_operator.control import Links
from mux_operator.door import Cluster
from mux_operator.metrics import Metrics
from mux_operator.pool_memory import REJECTED_S, PoolMemory, Rejected, Restarts
from mux_operator.search import Search, SearchProcess
from mux_operator.work_queue import WorkQueue

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The loop's times in seconds.

    A search is stopped after `plan_deadline`; a cycle waits `plan_patience` for it and otherwise
    goes on with what runs, so that planning many LLMs holds up no repair.
    """

    debounce: float = 0.2
    resync: float = 5.0
    plan_deadline: float = 20.0
    plan_patience: float = 1.0
    longest_restart_pause: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a cycle goes on with. `working`: the planner is not done, what runs stays meanwhile."""

    choice: Choice
    error: str = ""
    working: bool = False


class Reconciler:
    """Works on the pools of one door while `may_act` is set; `clock` is the epoch's."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        search: Search | None = None,
        timing: Timing | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        may_act: asyncio.Event | None = None,
    ) -> None:
        self._cluster = cluster
        self._search: Search = search or SearchProcess()
        self._timing = timing or Timing()
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._may_act = may_act
        self._memories: dict[PoolKey, PoolMemory] = {}
        self.queue = WorkQueue(time.monotonic, debounce_s=self._timing.debounce)
        self.last_cycle_at = time.monotonic()

    async def run(self, *, workers: int = 4) -> None:
        """Reconciles until cancelled."""
        self._cluster.on_change(self.queue.mark)
        for key in self._cluster.pools():
            self.queue.mark(key, after_s=0.0)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(workers):
                    group.create_task(self._work(), name=f"reconcile {number}")
                group.create_task(self._resync(), name="resync")
        finally:
            for memory in self._memories.values():
                await memory.end()
            await self._search.close()

    async def _resync(self) -> None:
        """Looks at every pool now and then, so that a lost event is not lost for ever."""
        while True:
            await asyncio.sleep(self._timing.resync)
            for key in {*self._cluster.pools(), *self._memories}:
                self.queue.mark(key)

    async def _work(self) -> None:
        while True:
            key = await self.queue.take()
            if self._may_act is not None:
                await self._may_act.wait()
            started = time.monotonic()
            try:
                await self.cycle(key)
            except MuxError as error:
                pause = self.queue.failed(key)
                self._count("error", started)
                log.warning("%s: %s; again in %.1f s", key, error, pause)
            except Exception:
                # A bug of ours in one pool must not take the others down; it is counted.
                pause = self.queue.failed(key)
                self._count("bug", started)
                log.exception("%s: the cycle broke; again in %.1f s", key, pause)
            else:
                self.queue.done(key)
                self._count("ok", started)

    async def cycle(self, key: PoolKey) -> tuple[Action, ...]:
        """One look at one pool; the actions it took."""
        memory = self._memory(key)
        with self._timed("1 observe"):
            seen = with_unread(await self._cluster.observe(key))
        with self._timed("2 snapshot"):
            snapshot = self._snapshot(seen, memory)
        with self._timed("3 plan"):
            asked = question(snapshot)
            answer = await self._plan(key, asked, memory)
        with self._timed("4 decide"):
            actions = decide(snapshot, asked, answer.choice)
        with self._timed("5 act"):
            await self._act(key, actions, memory, snapshot)
        with self._timed("6 report"):
            after = self._snapshot(_published(seen, actions), memory)
            outcome = Outcome(snapshot=after, asked=asked, choice=answer.choice,
                              planner_error=answer.error, planning=answer.working)  # fmt: skip
            report = statuses(outcome)
            await self._cluster.report(key, report)
            self._show(key, outcome, memory)
            self._metrics.told(key, report, _shown(after.demand))
            self._metrics.compared(key, report, after.observed)
        self._forget(key, seen)
        return actions

    def _show(self, key: PoolKey, outcome: Outcome, memory: PoolMemory) -> None:
        self._metrics.asked(key, outcome.snapshot)
        pool = outcome.snapshot.seen.pool
        unknown = outcome.planner_error or outcome.planning
        if unknown or pool is None or pool.spec_error:
            self._metrics.unplanned(key)
        else:
            self._metrics.planned(key, outcome.asked, outcome.choice, memory.planned_at)

    def _memory(self, key: PoolKey) -> PoolMemory:
        if key not in self._memories:
            links = Links(clock=self._clock, changed=lambda: self.queue.mark(key))
            self._memories[key] = PoolMemory(links=links)
        return self._memories[key]

    def _forget(self, key: PoolKey, seen: Observation) -> None:
        """Drops what is remembered of a pool that left nothing behind."""
        if seen.pool is None and not seen.units and not seen.carriers and not seen.members:
            memory = self._memories.pop(key)
            closing = asyncio.ensure_future(memory.end())
            closing.add_done_callback(lambda task: task.exception())

    def _snapshot(self, seen: Observation, memory: PoolMemory) -> Snapshot:
        memory.links.follow(_addresses(seen), seen.gateways)
        names = frozenset(item.name for item in seen.members)
        samples, live = memory.links.samples(), memory.links.sources()
        memory.demand = without(observed(memory.demand, samples), now=seen.now, models=names)
        memory.got = got(memory.got, samples, live=live, models=names,
                         under=specs_in_force(record.spec for record in seen.units))  # fmt: skip
        written = {record.unit: record.spec.generation for record in seen.units}
        return Snapshot(
            seen=seen,
            reports=memory.links.reports(),
            demand=rates(memory.demand, now=seen.now, live=live),
            has_table=memory.links.tables(),
            not_before={u: r.not_before for u, r in memory.restarts.items()},
            refused={u: message for u, (generation, message) in memory.refused.items()
                     if written.get(u) == generation},
            rejected={subject: no.message for subject, no in memory.rejected.items()},
            observed=figures(memory.got, now=seen.now),
            profiles=self._search.profiles,
        )  # fmt: skip

    async def _plan(self, key: PoolKey, asked: Question, memory: PoolMemory) -> _Answer:
        """What to carry out, and why planning failed if it did; the same is not asked twice."""
        if memory.planned is not None and memory.planned[0] == asked.inputs_hash:
            return _Answer(choice=memory.planned[1])
        staying = Choice(plan=stay(asked.problem))
        task = memory.search
        if task is None:
            task = self._searched(key, asked, memory)
        done, _ = await asyncio.wait({task}, timeout=self._timing.plan_patience)
        if not done:
            return _Answer(choice=staying, working=True)
        memory.search = None
        if memory.searching != asked.inputs_hash:
            # The world moved on while the planner worked: it is asked anew at the next look.
            self.queue.mark(key)
            return _Answer(choice=staying, working=True)
        try:
            choice = task.result()
        except MuxError as error:
            failures = self._metrics.plan_failures
            failures.labels(key.namespace, key.name, type(error).__name__).inc()
            return _Answer(choice=staying, error=str(error))
        if choice.deadline_hit:
            log.warning("%s: planning was stopped after %.0f s; the best plan so far is taken", key,
                        self._timing.plan_deadline)  # fmt: skip
        memory.planned, memory.planned_at = (asked.inputs_hash, choice), asked.problem.now
        return _Answer(choice=choice)

    def _searched(self, key: PoolKey, asked: Question, memory: PoolMemory) -> asyncio.Task[Choice]:
        """A search under way; its end makes the pool due, in case nobody waits any more."""
        started = time.monotonic()

        def ended(task: asyncio.Task[Choice]) -> None:
            seconds = time.monotonic() - started
            if not task.cancelled() and task.exception() is None:
                self._metrics.plan_s.labels(key.namespace, key.name).observe(seconds)
            if seconds > self._timing.plan_patience:
                self.queue.mark(key)

        search = self._search.choose(asked.problem, deadline_s=self._timing.plan_deadline)
        memory.searching = asked.inputs_hash
        memory.search = asyncio.create_task(search, name=f"plan {key}")
        memory.search.add_done_callback(ended)
        return memory.search

    async def _act(
        self, key: PoolKey, actions: tuple[Action, ...], memory: PoolMemory, snapshot: Snapshot
    ) -> None:
        """Performs the actions in order; one that is refused stops no other subject's."""
        before, memory.rejected = memory.rejected, {}
        for action in actions:
            subject = _subject(action)
            if subject in memory.rejected:
                continue
            known = before.get(subject)
            if known is not None and known.holds_up(action, snapshot.now):
                memory.rejected[subject] = known
                continue
            log.info("%s: %s because %s", key, _named(action), action.why)
            try:
                await self._perform(key, action, memory, snapshot.now)
            except SpecError as error:
                log.warning("%s: %s: %s; again in %.0f s", key, _named(action), error, REJECTED_S)
                memory.rejected[subject] = Rejected(action=action, message=str(error),
                                                     at=snapshot.now)  # fmt: skip

    async def _perform(self, key: PoolKey, action: Action, memory: PoolMemory, now: float) -> None:
        match action:
            case ApplyUnit():
                await self._tell(action, memory)
            case PublishRoutes():
                await self._cluster.apply(key, action)
                await memory.links.push(action.table)
            case _:
                await self._cluster.apply(key, action)
                self._remember(action, memory, now)

    async def _tell(self, action: ApplyUnit, memory: PoolMemory) -> None:
        try:
            reply = await memory.links.apply(action.unit, action.spec)
        except PeerError as error:
            log.warning("%s; told again at the next look", error)
            return
        if reply.accepted:
            memory.refused.pop(action.unit, None)
        else:
            memory.refused[action.unit] = (action.spec.generation, reply.message)

    def _remember(self, action: Action, memory: PoolMemory, now: float) -> None:
        match action:
            case WriteUnit(record=record, why=Why.UNIT_DIED):
                restarts = memory.restarts.setdefault(record.unit, Restarts())
                restarts.died(now, self._timing.longest_restart_pause)
            case StartUnit(record=record):
                restarts = memory.restarts.setdefault(record.unit, Restarts())
                restarts.started_at = now
            case _:
                return

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._metrics.step_s.labels(step).observe(time.monotonic() - started)

    def _count(self, result: str, started: float) -> None:
        self.last_cycle_at = time.monotonic()
        elapsed = self.last_cycle_at - started
        self._metrics.reconciles.labels("GPUPool", result).inc()
        self._metrics.reconcile_s.labels("GPUPool", result).observe(elapsed)
        self._metrics.queue_depth.set(self.queue.depth)
        self._metrics.queue_oldest.set(self.queue.oldest_s)


def _published(seen: Observation, actions: tuple[Action, ...]) -> Observation:
    """`seen` with the routes published since: gateways are judged by the table they were sent."""
    for action in actions:
        if isinstance(action, PublishRoutes):
            return replace(seen, routes=action.table)
    return seen


def _addresses(seen: Observation) -> dict[UnitId, UnitAddress]:
    """Where the written incarnation of each unit answers."""
    current = {record.unit: record.spec.incarnation for record in seen.units}
    return {
        carrier.unit: carrier.address
        for carrier in seen.carriers
        if carrier.address is not None
        and carrier.state is CarrierState.RUNNING
        and current.get(carrier.unit, carrier.incarnation) == carrier.incarnation
    }


def _shown(demand: Mapping[ModelName, MeasuredDemand]) -> dict[str, tuple[str, float]]:
    return {model: (value.source, value.rate) for model, value in demand.items()}


def _subject(action: Action) -> Subject:
    """Whose further actions wait when this one is refused."""
    match action:
        case WriteUnit(record=record) | StartUnit(record=record):
            return "unit", record.unit
        case StopUnit(unit=unit) | ForgetUnit(unit=unit) | ApplyUnit(unit=unit):
            return "unit", unit
        case InspectModel(model=model):
            return "inspection", model
        case EnsureService(model=model):
            return "service", model
    return "other", _named(action)


def _named(action: Action) -> str:
    """The action and its subject, for one line of log."""
    subject = getattr(action, "unit", None) or getattr(action, "model", None)
    if subject is None and isinstance(action, WriteUnit | StartUnit):
        subject = f"{action.record.unit} generation {action.record.spec.generation}"
    return f"{type(action).__name__} {subject or ''}".rstrip()
