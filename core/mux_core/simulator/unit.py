"""A unit on the virtual clock: rounds, grants, steps that end, preemption, quotas.

What happens, and in which order, is what `mux_runtime.scheduler` does: load of every member ->
policy -> grants and preemptions; quotas at the moments it adapts them. Steps take what `times`
says, settled when a step is granted by what is in flight then.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mux_core.adbs import GrantDecision, Limits, Preempt, Round, Turn, UnitLoad
from mux_core.batching import covered, victims
from mux_core.costmodel.interference import Interference
from mux_core.engine import Phase
from mux_core.errors import InvariantError
from mux_core.placement import Share, Unit
from mux_core.quota import ADAPT_AFTER_HOLD_S, ADAPT_EVERY_S, URGENT_AFTER_S
from mux_core.simulator.cores import CpuNode
from mux_core.simulator.engine import Step
from mux_core.simulator.member import Host, Meter, SimMember, Visit
from mux_core.simulator.policy import Decision, Happening, UnitPolicy
from mux_core.simulator.record import Span
from mux_core.simulator.times import StepTimes

_MOST_ROUNDS = 1000
"""Rounds at one moment; more means that a policy takes back what it grants, for ever."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A step under way: who ends it finds here what it was granted."""

    member: SimMember
    phase: Phase
    grant: GrantDecision
    begin: float
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """What a unit asks of the clock's keeper. `finished`: a request gave its last token;
    `touched`: the unit's rounds are due at this moment."""

    end_at: Callable[[float, "SimUnit", Flight], None]
    rebalance_at: Callable[[float, "SimUnit"], None]
    ask_at: Callable[[float, "SimUnit"], None]
    first_token: Callable[[SimMember, Visit, float], None]
    finished: Callable[["SimUnit", SimMember, Visit, float], None]
    touched: Callable[["SimUnit"], None]


class SimUnit:
    """Members on one account of `total` head units, under one policy.

    `plan` names all that hold memory here, `members` those that serve. `claimed`: units kept back
    for weights to come. On a CPU steps take what the `node` says. `woken`: a round is due at this
    very moment. `rebalance_due`, `ask_due`: when the policy is to be asked for quotas, for a round;
    other dates in the calendar are void.
    """

    policy: UnitPolicy

    def __init__(
        self, plan: Unit, *, interference: Interference | None, calendar: Calendar,
        node: CpuNode | None = None,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.members: tuple[SimMember, ...] = ()
        self.total = self.free = self.claimed = 0
        self.woken = False
        self.sm_in_use = 0
        self.flying = {Phase.PREFILL: 0, Phase.DECODE: 0}
        self.bus = 0.0
        self.spans: list[Span] = []
        self.spans_until = -1.0
        self.rebalance_due: float | None = None
        self.ask_due: float | None = None
        self._by_model: dict[str, SimMember] = {}
        self._interference = interference
        self._calendar = calendar
        self._node = node
        self._turn = Turn()
        self.limits = Limits()

    def take_over(self, policy: UnitPolicy, now: float) -> None:
        """`policy` decides from now on, over the members that are here now."""
        self._by_model = {member.model: member for member in self.members}
        self.policy, self.limits, self._turn = policy, policy.limits, Turn()
        for member in self.members:
            member.changed()
        self.rebalance(now)

    def member(self, model: str) -> SimMember:
        return self._by_model[model]

    def reshare(self, member: SimMember, share: Share, times: StepTimes) -> None:
        """New processes of a member took over, with another share."""
        member.prefill.percent, member.decode.percent = share.prefill, share.decode
        member.times = times
        member.changed()
        self.woken = True

    def reclaim(self, now: float) -> None:
        """Who holds more than its quota gives back its youngest request."""
        for member in self.members:
            if member.used > member.quota and member.running and not member.is_giving_back:
                self._take_back(member, max(member.visits, key=lambda visit: visit.order), now)
                member.changed()
        self.woken = True

    def kv_tokens(self, model: str) -> int:
        """Prompt and output tokens one request of this member can ever have."""
        member = self._by_model[model]
        others = sum(m.floor for m in self.members if m is not member)
        most = max(0, min(member.limit, self.total - others))
        return most // member.layout.row_units * member.block

    def accepts(self, model: str, visit: Visit, *, max_queue: int | None) -> bool:
        """Whether the request can ever be served here and may wait."""
        if max_queue is not None and len(self._by_model[model].queue) >= max_queue:
            return False
        return visit.prompt + visit.output <= self.kv_tokens(model)

    def submit(self, model: str, visit: Visit, now: float) -> None:
        member = self._by_model[model]
        if self._node is None:
            member.enqueue(visit)
            self.woken = True
            return

        def arrive(_: float) -> None:
            member.arriving -= 1
            member.enqueue(visit)
            self.woken = True
            self._calendar.touched(self)

        member.arriving += 1
        self._node.arrive(now, arrive)

    def rounds(self, now: float) -> None:
        """Rounds until nothing more follows at this moment."""
        for _ in range(_MOST_ROUNDS):
            if not self.woken or not self.members:
                return
            self.woken = False
            self._round(now)
        raise InvariantError(f"unit {self.plan.id}: policy {self.policy.name} made {_MOST_ROUNDS} "
                             f"rounds at {now:.6f} s without an end")  # fmt: skip

    def _round(self, now: float) -> None:
        for member in self.members:
            if member.is_giving_back:
                self._clear_aborts(member, now)
        limits = self.limits
        load = UnitLoad(
            members=tuple([member.load(limits) for member in self.members]),
            free_units=max(0, self.free - self.claimed), sm_in_use=self.sm_in_use,
            prefills=self.flying[Phase.PREFILL], turn=self._turn,
        )  # fmt: skip
        decision = self.policy.decide(load, [member.view() for member in self.members], now)
        outcome = decision.round
        self._turn = outcome.turn
        for grant in outcome.grants:
            self._start(grant, now)
        for preempt in outcome.preempts:
            self._preempt(preempt, decision, now)
        self._note_holds(outcome, now)
        self._ask_again(decision, now)

    def _ask_again(self, decision: Decision, now: float) -> None:
        again = decision.again_at
        self.ask_due = None if again is None else max(now, again)
        if self.ask_due is not None:
            self._calendar.ask_at(self.ask_due, self)

    # Steps

    def _start(self, grant: GrantDecision, now: float) -> None:
        member = self._by_model[grant.model]
        host = member.host(grant.phase)
        row_units = member.layout.row_units
        if not host.is_idle or grant.rows * row_units > self.free:
            raise InvariantError(f"unit {self.plan.id}: policy {self.policy.name} grants "
                                 f"{grant.model} {grant.phase} {grant.rows} rows; idle: "
                                 f"{host.is_idle}, free units: {self.free}")  # fmt: skip
        batch, seconds = self._move_in(member, host, grant)
        if not batch:
            return
        member.held_since = None
        self._book(member, now)
        host.busy, host.leased, host.sms = True, grant.rows, grant.percent
        self.free -= grant.rows * row_units
        self._fly(grant, +1)
        member.changed()
        self._run(Flight(member, grant.phase, grant, now, batch), seconds)

    def _run(self, flight: Flight, seconds: float) -> None:
        if self._node is None:
            self._calendar.end_at(flight.begin + seconds, self, flight)
            return

        def end(now: float) -> None:
            self.end(flight, now)
            self._calendar.touched(self)

        self._node.step(flight.begin, seconds, flight.batch, end,
                        threads=self._node.threads(flight.grant.percent))  # fmt: skip

    def _move_in(self, member: SimMember, host: Host, grant: GrantDecision) -> tuple[int, float]:
        """The step's requests take their seats; how many run, and for how long."""
        if grant.phase is Phase.DECODE:
            member.land()
            return self._decode_cost(member, host, grant)
        chosen, rows = member.batch(self.limits)
        for visit in chosen[: min(covered(rows, grant.rows), grant.max_seqs)]:
            if visit not in host.engine.prefilling:
                # The batch is the head of the queue, in its order.
                member.queue.popleft()
                host.engine.add(visit)
        plan, _ = host.engine.prefill_plan(rows=grant.rows, budget=grant.token_budget,
                                           seats=grant.max_seqs)  # fmt: skip
        if not plan:
            return 0, 0.0
        seconds = member.times.prefill_s(len(plan), sum(tokens for _, tokens, _ in plan))
        if self._interference is not None:
            seconds *= self._interference.prefill_factor(
                decoding=self.flying[Phase.DECODE] > 0, prefilling=self.flying[Phase.PREFILL] > 0
            )
        return len(plan), seconds

    def _decode_cost(
        self, member: SimMember, host: Host, grant: GrantDecision
    ) -> tuple[int, float]:  # fmt: skip
        engine = host.engine
        decoding = len(engine.decoding)
        short = max(0, len(engine.at_edge) - grant.rows)
        batch = min(decoding - short, grant.token_budget, grant.max_seqs)
        if batch <= 0:
            return 0, 0.0
        context = engine.context * batch // decoding
        seconds = member.times.decode_s(batch, context)
        if self._interference is None:
            return batch, seconds
        host.bus = member.times.bus(context, seconds)
        if self.flying[Phase.DECODE]:
            seconds *= self._interference.bus_stretch(self.bus + host.bus)
        return batch, seconds * self._interference.decode_factor(self.flying[Phase.PREFILL])

    def _fly(self, grant: GrantDecision, step: int) -> None:
        """One step more, or less, is in flight."""
        self.sm_in_use += step * grant.percent
        self.flying[grant.phase] += step
        if grant.phase is Phase.DECODE:
            self.bus += step * self._by_model[grant.model].decode.bus
            if not self.flying[Phase.DECODE]:
                self.bus = 0.0  # no rest of rounding stays

    def end(self, flight: Flight, now: float) -> None:
        """A step has ended: its tokens are out, its rows settled."""
        member, grant = flight.member, flight.grant
        host = member.host(flight.phase)
        self._book(member, now)
        self._fly(grant, -1)
        done = host.engine.step(rows=grant.rows, budget=grant.token_budget, seats=grant.max_seqs)
        host.busy, host.leased, host.sms = False, 0, 0
        host.starved_rows = host.engine.rows_needed if done.starved else 0
        self.free += (grant.rows - done.used) * member.layout.row_units
        self._meter(flight, done, now)
        if flight.phase is Phase.PREFILL:
            self._prefilled(member, done, now)
        for visit in done.finished:
            self._finish(member, host, visit, now)
        member.changed()
        self.woken = True

    def _prefilled(self, member: SimMember, done: Step[Visit], now: float) -> None:
        for visit in done.emitted:
            if visit.first != visit.first:  # NaN: its first token
                visit.first = now
                self._calendar.first_token(member, visit, now)
            if visit in member.prefill.aborts:
                member.prefill.aborts.remove(visit)  # its rows are not given back: it goes on
            if visit in member.prefill.engine.decoding:
                member.cross(visit)
            self.policy.happened(Happening.PREFILLED, member.model, now)

    def _finish(self, member: SimMember, host: Host, visit: Visit, now: float) -> None:
        self.free += host.engine.remove(visit) * member.layout.row_units
        if visit in host.aborts:
            host.aborts.remove(visit)
        self._calendar.finished(self, member, visit, now)
        self.policy.happened(Happening.FINISHED, member.model, now)

    # Preemption

    def _preempt(self, preempt: Preempt, decision: Decision, now: float) -> None:
        """The youngest requests wait again until `units` are on their way back."""
        member = self._by_model[preempt.model]
        if member.is_giving_back:
            return
        member.decode.engine.refresh()
        running = sorted(member.visits, key=lambda visit: -visit.order)
        layout = member.layout
        for visit in victims(running, preempt.units, row_units=layout.row_units,
                             block_tokens=layout.block_tokens):  # fmt: skip
            visit.keeps_output = decision.keeps_output
            self._take_back(member, visit, now)
        member.changed()
        self.woken = True

    def _take_back(self, member: SimMember, visit: Visit, now: float) -> None:
        """Sets a request back, at once or when its host is idle."""
        if visit in member.crossing:
            self._book(member, now)
            self._set_back(member, visit, member.uncross(visit), now)
            return
        decodes = visit in member.decode.engine.decoding
        (member.decode if decodes else member.prefill).aborts.append(visit)

    def _clear_aborts(self, member: SimMember, now: float) -> None:
        for host in member.hosts:
            if host.busy:
                continue
            self._book(member, now)
            for visit in host.aborts:
                self._set_back(member, visit, host.engine.remove(visit), now)
            host.aborts.clear()
        member.changed()

    def _set_back(self, member: SimMember, visit: Visit, rows: int, now: float) -> None:
        """It waits again; what it had generated stands, if the policy keeps that."""
        self.free += rows * member.layout.row_units
        visit.computed = 0
        if not visit.keeps_output:
            visit.length = visit.prompt
        member.meter.preempted += 1
        member.enqueue(visit)
        self.policy.happened(Happening.PREEMPTED, member.model, now)

    # Quotas

    def _note_holds(self, outcome: Round, now: float) -> None:
        """Members short of KV get their quotas looked at soon, the longest short one first."""
        short = outcome.short_of_kv if outcome.held else ()
        for model in sorted(short):
            member = self._by_model[model]
            if member.held_since is None:
                member.held_since = now
        due = now + (ADAPT_AFTER_HOLD_S if short else ADAPT_EVERY_S)
        if self.rebalance_due is not None and self.rebalance_due <= due:
            return  # an earlier date stands
        if short or not all(member.is_empty for member in self.members):
            self.rebalance_due = due
            self._calendar.rebalance_at(due, self)

    def rebalance(self, now: float) -> None:
        """Shares the quotas again by what members hold and want."""
        self.rebalance_due = None
        if not self.members:
            return
        late = [(m.held_since, m.model) for m in self.members
                if m.held_since is not None and now - m.held_since > URGENT_AFTER_S]  # fmt: skip
        claims = [member.claim() for member in self.members]
        quotas = self.policy.quotas(claims, self.total - self.claimed, now,
                                    urgent=min(late)[1] if late else None)  # fmt: skip
        for member in self.members:
            quota = quotas.get(member.model, 0)
            if quota != member.quota:
                member.quota = quota
                member.changed()
        self.woken = True

    # Figures

    def _book(self, member: SimMember, now: float) -> None:
        """What the member held since it was last looked at; before anything of it changes."""
        lasted = now - member.metered_at
        if lasted <= 0:
            return
        member.metered_at = now
        meter, rows = member.meter, member.used_rows
        meter.kv_area += lasted * rows
        if rows > meter.kv_most:
            meter.kv_most = rows
        if member.prefill.busy or member.decode.busy:
            meter.busy_s += lasted

    def _meter(self, flight: Flight, done: Step[Visit], now: float) -> None:
        meter = flight.member.meter
        meter.steps[flight.phase] += 1
        meter.decoded += done.decoded
        if now <= self.spans_until:
            self.spans.append(Span(
                unit=self.plan.id, model=flight.member.model, phase=flight.phase,
                begin=flight.begin, end=now, percent=flight.grant.percent, batch=flight.batch,
            ))  # fmt: skip

    def begin_window(self, now: float, *, spans_s: float) -> None:
        """From now on figures count."""
        self.spans_until = now + spans_s
        self.spans.clear()
        for member in self.members:
            member.meter, member.metered_at = Meter(), now

    def settle(self, now: float) -> None:
        """Brings every member's figures up to now."""
        for member in self.members:
            self._book(member, now)

    def sample(self, now: float) -> None:
        for member in self.members:
            meter = member.meter
            meter.kv_samples.append((now, member.used / self.total))
            meter.batch_samples.append((now, float(member.decoding)))
