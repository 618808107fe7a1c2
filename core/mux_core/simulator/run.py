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
* With `Settings.cpu`: cores that steps, scheduler and client of a node share (`cores`).
* KV in rows on one account per unit, sized as the estimator does; preempted requests are computed
  again.
* With `Settings.replan`: rates as the operator measures them, plans taken up on the way, engines
  that load, drain and free their memory (`moving`).

Not modelled
* Time between a step's end and the next grant and HTTP (but on a CPU), tokenizers, cancelled
  requests, crashes, prefix caches, moves of running requests, free units in pieces too small for a
  row, attention of a prompt's later parts to its earlier ones where it goes over several steps, a
  queue's bound (`max_queue` sets one).

Events of one moment are handled in the order in which they were put down; then each unit they
touched holds its rounds. The same arguments give the same record in any process.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from math import inf

from mux_core.errors import InvariantError, SpecError
from mux_core.placement import Placement
from mux_core.planning import PlacementProblem
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.audit import audit_flow, audit_little, audit_unit
from mux_core.simulator.cores import Cores
from mux_core.simulator.logs import LlmLog, member_log
from mux_core.simulator.making import Maker
from mux_core.simulator.member import SimMember, Visit
from mux_core.simulator.moving import Mover
from mux_core.simulator.policy import PolicyFactory
from mux_core.simulator.record import MemberLog, RunRecord, Span
from mux_core.simulator.replanning import SAMPLE_S, Demands
from mux_core.simulator.routing import Router, endpoints
from mux_core.simulator.settings import Settings
from mux_core.simulator.unit import Calendar, Flight, SimUnit
from mux_core.units import ModelName, UnitId

__all__ = ["Run", "Settings", "simulate"]

_TELL_EVERY = 2048
"""Events between two looks at `on_progress` and `stop`."""


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
        self._held: dict[ModelName, deque[Visit]] = {}
        self._retired: list[MemberLog] = []
        self._retired_spans: list[Span] = []
        self._gpu_s = self._gpus_since = 0.0
        self._gpus = 0
        self.now = 0.0
        self.events = 0
        self.logs = {llm.name: LlmLog() for llm in problem.llms}
        self._arrivals = iter(arrivals)
        self._next: Arrival | None = None
        self._orders = 0
        self._heap: list[tuple[float, int, Callable[[float], SimUnit | None]]] = []
        self._numbers = count()
        self._touched: dict[UnitId, SimUnit] = {}
        self._calendar = Calendar(
            end_at=self._end_at, rebalance_at=self._rebalance_at, ask_at=self._ask_at,
            first_token=self._first_token, finished=self._finished, touched=self._touch,
        )  # fmt: skip
        self.router = Router(endpoints(placement))
        self._maker = Maker(problem=problem, policy_factory=policy_factory, settings=settings,
                            calendar=self._calendar, settle_at=self._settle_at)  # fmt: skip
        self.units = {unit.id: self._maker.unit(unit, 0.0) for unit in placement.units
                      if unit.members}  # fmt: skip
        self._count_gpus(0.0)
        self._mover: Mover | None = None
        if settings.replan is not None:
            self._mover = Mover(self, self._maker, settings.replan.loading)
            self._demands = Demands(problem, settings.replan)

    # The clock

    def run(self) -> RunRecord:
        settings = self.settings
        self.at(settings.warmup, self._begin_window)
        if settings.replan is not None:
            self._look(0.0)
            self.at(settings.replan.every_s, self._plan_again)
        self._pull()
        interrupted, tell_at = False, _TELL_EVERY
        while not interrupted and self._step():
            if self.events >= tell_at:
                tell_at = self.events + _TELL_EVERY
                interrupted = self._tell()
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

    def at(self, at: float, event: Callable[[float], SimUnit | None]) -> None:
        if not at >= self.now:
            raise InvariantError(f"clock: an event is put down for {at} s at {self.now} s")
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
            self._held.setdefault(model, deque()).append(visit)
            return
        unit = self.units[target]
        if not unit.accepts(model, visit, max_queue=self.settings.max_queue):
            self.router.done(target, model)
            self.logs[model].reject(visit.index, self.now)
            return
        unit.submit(model, visit, self.now)
        self._touched[target] = unit

    # Planning again

    def _look(self, now: float) -> None:
        """The operator reads counters and queues."""
        arrived = {name: len(log.arrived) for name, log in self.logs.items()}
        waiting: Counter[ModelName] = Counter()
        for unit in self.units.values():
            waiting.update({member.model: len(member.queue) for member in unit.members})
        self._demands.look(now, arrived, waiting)
        self.at(now + SAMPLE_S, self._look)

    def _plan_again(self, now: float) -> None:
        """A new plan, unless one is still being carried out."""
        replan, mover = self.settings.replan, self._mover
        assert replan is not None
        assert mover is not None
        self.at(now + replan.every_s, self._plan_again)
        if mover.is_busy:
            return
        asked = self._demands.problem(now, self.placement)
        if asked is None:
            return
        plan = replan.plan(asked)
        if plan.proposed != self.placement:
            before, self.placement = self.placement, plan.proposed
            mover.adopt(plan, before, now)
            self._touched |= self.units

    def opened(self, unit: SimUnit, now: float) -> None:
        self.units[unit.plan.id] = unit
        self._count_gpus(now)
        if now >= self.settings.warmup:
            unit.spans_until = self.settings.warmup + self.settings.spans_s

    def closed(self, unit: SimUnit, now: float) -> None:
        del self.units[unit.plan.id]
        self._count_gpus(now)

    def _count_gpus(self, now: float) -> None:
        """GPU seconds up to now, and the GPUs held from now on."""
        self._gpu_s += self._gpus * (now - self._gpus_since)
        self._gpus_since = now
        self._gpus = sum(unit.plan.group.size for unit in self.units.values())

    def release(self, model: ModelName, now: float) -> None:
        """Requests that wait for a replica get theirs."""
        waiting = self._held.pop(model, ())
        for visit in waiting:
            self._dispatch(model, visit)

    def retire(self, unit: SimUnit, member: SimMember, now: float) -> None:
        """A member is about to leave; its figures stay."""
        unit.settle(now)
        window = self.settings.until - self.settings.warmup
        self._retired.append(member_log(unit, member, window=window))
        if len(unit.members) == 1:
            self._retired_spans += unit.spans

    # What units ask of the clock

    def _end_at(self, at: float, unit: SimUnit, flight: Flight) -> None:
        def end(now: float) -> SimUnit:
            unit.end(flight, now)
            return unit

        self.at(at, end)

    def _rebalance_at(self, at: float, unit: SimUnit) -> None:
        def rebalance(now: float) -> SimUnit | None:
            if unit.rebalance_due != at:
                return None
            unit.rebalance(now)
            return unit

        self.at(at, rebalance)

    def _ask_at(self, at: float, unit: SimUnit) -> None:
        def ask(now: float) -> SimUnit | None:
            if unit.ask_due != at:
                return None
            unit.woken = True
            return unit

        self.at(at, ask)

    def _settle_at(self, at: float, cores: Cores) -> None:
        def settle(now: float) -> None:
            if cores.due == at:
                cores.settle(now)

        self.at(at, settle)

    def _touch(self, unit: SimUnit) -> None:
        self._touched[unit.plan.id] = unit

    def _first_token(self, member: SimMember, visit: Visit, now: float) -> None:
        self.logs[member.model].first[visit.index] = now

    def _finished(self, unit: SimUnit, member: SimMember, visit: Visit, now: float) -> None:
        self.logs[member.model].finish(visit.index, now)
        self.router.done(unit.plan.id, member.model)
        if member.draining and member.is_empty and self._mover is not None:
            self._mover.drains(unit, member, now)

    # Figures

    def _begin_window(self, now: float) -> None:
        for unit in self.units.values():
            unit.begin_window(now, spans_s=self.settings.spans_s)
        for log in self.logs.values():
            log.begin_window(now)
        self._count_gpus(now)
        self._gpu_s = 0.0
        self._sample(now)

    def _sample(self, now: float) -> None:
        for unit in self.units.values():
            unit.sample(now)
        self.at(now + self.settings.sample_s, self._sample)

    def _record(self, until: float, *, interrupted: bool) -> RunRecord:
        window = max(0.0, until - self.settings.warmup)
        checks = self._checks(until, window) if self.settings.check and window > 0 else {}
        self._count_gpus(until)
        members = [member_log(unit, member, window=window)
                   for unit in self.units.values() for member in unit.members]  # fmt: skip
        spans = [span for unit in self.units.values() for span in unit.spans]
        return RunRecord(
            warmup=self.settings.warmup, until=until, events=self.events,
            gpus_used=self._gpu_s / window if window > 0 else self._gpus, interrupted=interrupted,
            requests={name: log.table() for name, log in sorted(self.logs.items())},
            members=(*self._retired, *members), spans=(*self._retired_spans, *spans),
            moves=self._mover.logs(until) if self._mover is not None else (), checks=checks,
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
            inside=sum(len(m.queue) + m.running + m.arriving for m in members)
            + sum(map(len, self._held.values())),
        )
        return {f"{what} {name}": value for name, law in laws.items()
                for what, value in (("L", law.inside), ("lambda", law.rate), ("W", law.stay))
                }  # fmt: skip
