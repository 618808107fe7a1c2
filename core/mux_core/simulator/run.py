"""One run: a placement, arrivals and a policy on a virtual clock; what it was like, as a record.

Modelled
* Every request, every prefill and decode step of every replica, each granted by the policy in a
  round of its unit. Rounds, the choice of batches, preemption and quotas are the functions that
  the product calls (`mux_core.adbs`, `.batching`, `.quota`); replicas are chosen as the gateway
  chooses (`.routes`).
* Each LLM of a unit has a prefill and a decode host with at most one step in flight each; a
  prefilled request crosses to the decode host with its rows. Steps in flight hold their percent of
  the SMs, bounded by the policy's limit; percents are caps, so the limit may exceed 100.
* Step times: the LLM's profile at its share, by batch and mean length; beyond the measured lengths
  and batches linear from the last two measured ones. Beside others a step is slowed as the
  estimator assumes (`mux_core.costmodel.interference`), settled once, when it is granted.
* KV in rows on one account per unit, sized as the estimator does; preempted requests are computed
  again.

Not modelled
* Time between a step's end and the next grant, HTTP, tokenizers, cancelled requests, crashes,
  prefix caches, free units in pieces too small for a row, attention of a prompt's later parts to
  its earlier ones where it goes over several steps, a queue's bound (`max_queue` sets one).

Events of one moment are handled in the order in which they were put down; then each unit they
touched holds its rounds. The same arguments give the same record in any process.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf

from mux_core.costmodel.interference import DEFAULT_INTERFERENCE, Interference
from mux_core.costmodel.profile import profile_of
from mux_core.costmodel.table import StepTable
from mux_core.errors import SpecError
from mux_core.llm import Llm
from mux_core.placement import Placement, Unit
from mux_core.planners.assembly import kind_of
from mux_core.planning import PlacementProblem
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.audit import audit_flow, audit_little, audit_unit
from mux_core.simulator.kv import KvRule, RowLayout, estimated_kv, kv_units, row_layout
from mux_core.simulator.logs import LlmLog, member_log
from mux_core.simulator.member import SimMember, Visit
from mux_core.simulator.policy import PolicyFactory, Queue, UnitSetting
from mux_core.simulator.record import RunRecord
from mux_core.simulator.routing import Router, endpoints
from mux_core.simulator.times import step_times
from mux_core.simulator.unit import Calendar, Flight, SimUnit
from mux_core.units import ModelName, UnitId

_TELL_EVERY = 2048
"""Events between two looks at `on_progress` and `stop`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run is asked. Times in seconds of the virtual clock.

    The clock stops at `warmup` + `seconds`; figures are of the `seconds`. `interference` None: no
    step slows another. `kv`: how much KV a unit has. `unit_bytes`: size of a head unit;
    `block_tokens`: tokens per row of LLMs known by their profile alone. `guaranteed`: part of the
    KV the plan guarantees a member that nobody may borrow. `max_queue`: waiting requests per
    replica beyond which one is rejected (None: no bound). `tables`: measured profiles beside the
    shipped. `spans_s`: how much of the window the timeline covers. `check`: assert the books at
    every event. `on_progress` hears the clock now and then; `stop` ends the run early.
    """

    seconds: float = 600.0
    warmup: float = 60.0
    interference: Interference | None = DEFAULT_INTERFERENCE
    kv: KvRule = estimated_kv
    unit_bytes: int = 8192
    block_tokens: int = 32
    guaranteed: float = 1.0
    max_queue: int | None = None
    tables: Mapping[str, StepTable] = field(default_factory=dict)
    sample_s: float = 1.0
    spans_s: float = 5.0
    check: bool = False
    on_progress: Callable[[float], None] | None = None
    stop: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("sample_s", self.sample_s)):
            if not 0 < value < inf:
                raise SpecError(f"simulation: {name} is {value}; use a number above 0")
        if not 0 <= self.warmup < inf:
            raise SpecError(f"simulation: warmup is {self.warmup} s; at least 0")

    @property
    def until(self) -> float:
        return self.warmup + self.seconds


def simulate(
    problem: PlacementProblem,
    placement: Placement,
    arrivals: Iterable[Arrival],
    policy_factory: PolicyFactory,
    settings: Settings,
) -> RunRecord:
    """Runs `arrivals`, in order of time, on `placement`; LLMs and GPUs are the problem's."""
    return Run(problem, placement, arrivals, policy_factory, settings).run()


class Run:
    """The clock's keeper: events, units, logs."""

    def __init__(
        self, problem: PlacementProblem, placement: Placement, arrivals: Iterable[Arrival],
        policy_factory: PolicyFactory, settings: Settings,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.problem = problem
        self.placement = placement
        self.now = 0.0
        self.events = 0
        self.logs = {llm.name: LlmLog() for llm in problem.llms}
        self._llms = {llm.name: llm for llm in problem.llms}
        self._policy_factory = policy_factory
        self._arrivals = iter(arrivals)
        self._next: Arrival | None = None
        self._orders = 0
        self._heap: list[tuple[float, int, Callable[[float], SimUnit | None]]] = []
        self._numbers = count()
        self._touched: dict[UnitId, SimUnit] = {}
        self._calendar = Calendar(
            end_at=self._end_at, rebalance_at=self._rebalance_at, ask_at=self._ask_at,
            first_token=self._first_token, finished=self._finished,
        )  # fmt: skip
        self.router = Router(endpoints(placement))
        self.units = {unit.id: self._unit(unit) for unit in placement.units if unit.members}

    # Making units

    def _unit(self, plan: Unit) -> SimUnit:
        settings = self.settings
        kind = kind_of(self.problem, plan.group)
        missing = sorted(plan.models - self._llms.keys())
        if kind is None or missing:
            subject = f"LLM {missing[0]}" if missing else f"node {plan.group.node}"
            raise SpecError(f"plan: unit {plan.id} needs {subject}, which the workload lacks; plan "
                            "for this workload")  # fmt: skip
        total = kv_units(plan, kind, self._llms, settings.kv, unit_bytes=settings.unit_bytes)
        layouts: dict[ModelName, RowLayout] = {}
        members = []
        for member in plan.members:
            llm = self._llms[member.model]
            layout = row_layout(llm, kind, unit_bytes=settings.unit_bytes,
                                block_tokens=settings.block_tokens)  # fmt: skip
            layouts[member.model] = layout
            times = step_times(llm, kind, member.share, profile_of(llm, kind.gpu, settings.tables))
            members.append(SimMember(member, times, layout, _queue_view(llm, member.rate),
                                     priority=llm.priority))  # fmt: skip
        self._divide(members, total)
        policy = self._policy_factory(UnitSetting(
            unit=plan, kind=kind, llms=self._llms, kv_units=total,
            row_units={model: layout.row_units for model, layout in layouts.items()},
            block_tokens={model: layout.block_tokens for model, layout in layouts.items()},
        ))  # fmt: skip
        unit = SimUnit(plan, members, policy, total=total, interference=settings.interference,
                       calendar=self._calendar)  # fmt: skip
        unit.rebalance(self.now)
        return unit

    def _divide(self, members: list[SimMember], total: int) -> None:
        """Floors and limits as planned; floors that exceed the unit's KV shrink in proportion."""
        size = self.settings.unit_bytes
        asked = [int(m.plan.kv.guaranteed * self.settings.guaranteed) // size for m in members]
        shrink = min(1.0, total / max(1, sum(asked)))
        for member, units in zip(members, asked, strict=True):
            member.floor = int(units * shrink)
            member.limit = min(max(member.plan.kv.limit // size, member.floor), total)

    # The clock

    def run(self) -> RunRecord:
        settings = self.settings
        self._at(settings.warmup, self._begin_window)
        self._pull()
        interrupted, tell_at = False, _TELL_EVERY
        try:
            while not interrupted and self._step():
                if self.events >= tell_at:
                    tell_at = self.events + _TELL_EVERY
                    interrupted = self._tell()
        except KeyboardInterrupt:
            interrupted = True
        until = self.now if interrupted else settings.until
        for unit in self.units.values():
            unit.settle(until)
        return self._record(until, interrupted=interrupted)

    def _tell(self) -> bool:
        """Says how far it is; whether to stop."""
        if self.settings.on_progress is not None:
            self.settings.on_progress(self.now)
        return self.settings.stop is not None and self.settings.stop()

    def _step(self) -> bool:
        """All events of the next moment, then the rounds they call for; False at the end."""
        heap = self._heap
        at = heap[0][0] if heap else inf
        if self._next is not None and self._next.at < at:
            at = self._next.at
        if at > self.settings.until:
            return False
        self.now = at
        while self._next is not None and self._next.at == at:
            self._arrive(self._next)
            self._pull()
        while heap and heap[0][0] == at:
            self.events += 1
            unit = heappop(heap)[2](at)
            if unit is not None:
                self._touched[unit.plan.id] = unit
        if self._touched:
            for unit in self._touched.values():
                unit.rounds(at)
                if self.settings.check:
                    audit_unit(unit)
            self._touched.clear()
        return True

    def _at(self, at: float, event: Callable[[float], SimUnit | None]) -> None:
        heappush(self._heap, (at, next(self._numbers), event))

    # Arrivals

    def _pull(self) -> None:
        before = self.now if self._next is None else self._next.at
        self._next = next(self._arrivals, None)
        if self._next is not None and not self._next.at >= before:
            raise SpecError(f"arrivals: {self._next.model} at {self._next.at} s after one at "
                            f"{before} s; sort them by time, from 0 on")  # fmt: skip

    def _arrive(self, arrival: Arrival) -> None:
        self.events += 1
        log = self.logs.get(arrival.model)
        if log is None:
            raise SpecError(f"arrivals: LLM {arrival.model} at {arrival.at} s is not in the "
                            f"workload; it has {', '.join(sorted(self.logs))}")  # fmt: skip
        self._orders += 1
        visit = Visit(order=self._orders, prompt=arrival.prompt, output=arrival.output,
                      length=arrival.prompt, index=log.arrive(arrival, self.now),
                      arrived=arrival.at)  # fmt: skip
        self._dispatch(arrival.model, visit)

    def _dispatch(self, model: ModelName, visit: Visit) -> None:
        target = self.router.take(model)
        if target is None:
            return
        unit = self.units[target]
        if not unit.accepts(model, visit, max_queue=self.settings.max_queue):
            self.router.done(target, model)
            self.logs[model].reject(visit.index, self.now)
            return
        unit.submit(model, visit)
        self._touched[target] = unit

    # What units ask of the clock

    def _end_at(self, at: float, unit: SimUnit, flight: Flight) -> None:
        def end(now: float) -> SimUnit:
            unit.end(flight, now)
            return unit

        self._at(at, end)

    def _rebalance_at(self, at: float, unit: SimUnit) -> None:
        def rebalance(now: float) -> SimUnit | None:
            if unit.rebalance_due != at:
                return None
            unit.rebalance(now)
            return unit

        self._at(at, rebalance)

    def _ask_at(self, at: float, unit: SimUnit) -> None:
        def ask(now: float) -> SimUnit | None:
            if unit.ask_due != at:
                return None
            unit.woken = True
            return unit

        self._at(at, ask)

    def _first_token(self, member: SimMember, visit: Visit, now: float) -> None:
        self.logs[member.model].first[visit.index] = now

    def _finished(self, unit: SimUnit, member: SimMember, visit: Visit, now: float) -> None:
        self.logs[member.model].finish(visit.index, now)
        self.router.done(unit.plan.id, member.model)

    # Figures

    def _begin_window(self, now: float) -> None:
        for unit in self.units.values():
            unit.begin_window(now, spans_s=self.settings.spans_s)
        for log in self.logs.values():
            log.begin_window(now)
        self._sample(now)

    def _sample(self, now: float) -> None:
        for unit in self.units.values():
            unit.sample(now)
        self._at(now + self.settings.sample_s, self._sample)

    def _record(self, until: float, *, interrupted: bool) -> RunRecord:
        window = max(0.0, until - self.settings.warmup)
        checks = self._checks(until, window) if self.settings.check and window > 0 else {}
        return RunRecord(
            warmup=self.settings.warmup, until=until, events=self.events,
            gpus_used=self.placement.gpus_used, interrupted=interrupted,
            requests={name: log.table() for name, log in sorted(self.logs.items())},
            members=tuple(member_log(unit, member, window=window)
                          for unit in self.units.values() for member in unit.members),
            spans=tuple(span for unit in self.units.values() for span in unit.spans),
            checks=checks,
        )  # fmt: skip

    def _checks(self, until: float, window: float) -> dict[str, float]:
        """Little's law by LLM; raises InvariantError where it, or the flow, does not hold."""
        laws = {name: log.little(until, window) for name, log in sorted(self.logs.items())}
        audit_little((name, law.inside, law.spent) for name, law in laws.items())
        members = [member for unit in self.units.values() for member in unit.members]
        audit_flow(
            arrived=sum(len(log.arrived) for log in self.logs.values()),
            served=sum(log.served for log in self.logs.values()),
            rejected=sum(len(log.turned_away) for log in self.logs.values()),
            inside=sum(len(member.queue) + member.running for member in members),
        )
        return {f"{what} {name}": value for name, law in laws.items()
                for what, value in (("L", law.inside), ("lambda", law.rate), ("W", law.stay))
                }  # fmt: skip


def _queue_view(llm: Llm, rate: float) -> Queue:
    demand = llm.demand
    return Queue(None, rate, demand.prompt_tokens, demand.output_tokens)
