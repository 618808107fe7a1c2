"""Estimator `default`: rates, latencies and KV of a unit with interference and queueing.

Little's law ties the batch of each member to its rate: b = r * output tokens * step time, and the
step time grows with b, with the unit's prefills and with the memory bus that all decodes share. The
fixed point is found from below, so it is the least one, where the unit settles. Requests wait
for prefills and for KV (`waiting`). A unit carries its members when each stays at or below
`headroom` of every resource and meets its service level.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import erf, exp, inf, sqrt

from mux_core.costmodel.hardware import gpu_type
from mux_core.costmodel.interference import DEFAULT_INTERFERENCE, Interference, bus_share
from mux_core.costmodel.profile import Profile, StepCurve, profile_of
from mux_core.costmodel.table import StepTable
from mux_core.estimator.memory import (
    fixed_bytes,
    kv_floor_bytes,
    kv_per_token,
    overhead_s,
    room_bytes,
)
from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome, UnitOutcome
from mux_core.estimator.waiting import Holding, Queue, Stream, for_kv, for_prefills
from mux_core.footprint import layout_error
from mux_core.llm import Llm
from mux_core.placement import Share
from mux_core.planning import PlanReason
from mux_core.units import Bytes, Percent

ROUNDS = 40
P99 = 2.33
BATCHED = 4.0
"""Prompts that a prefill takes together where they wait."""
LEAST_PERCENT = 10
MOST_KNOWN = 50_000
CPU_PERCENT = 50
"""Most that a phase of a sharing member takes of a CPU slot: no part of a step fills all cores, so
two steps on halves beat one after the other (`benchmarks/bench_up_vs_separate.py`, where prefill at
100 % served 0.6 times the rate)."""


@dataclass(slots=True, kw_only=True)
class _Costs:
    """What one LLM costs on one kind of group, whatever its rate and share.

    `prefill_s`: seconds per prompt when prompts are batched; `first_s`: of a prompt by itself.
    """

    llm: Llm
    profile: Profile
    tensor: int
    prefill_s: float
    first_s: float
    sequence_bytes: float
    token_bytes: float
    held_bytes: float
    kv_floor: float
    largest: int
    context: float
    overhead_s: float
    output_tokens: float
    curves: dict[int, StepCurve] = field(default_factory=dict)

    def curve(self, percent: int) -> StepCurve:
        found = self.curves.get(percent)
        if found is None:
            found = self.curves[percent] = self.profile.decode_curve(
                tensor=self.tensor,
                percent=percent,
                context=self.context,
                overhead_s=self.overhead_s,
            )
        return found


@dataclass(slots=True)
class _State:
    """One member while the fixed point is sought."""

    ask: Ask
    costs: _Costs
    percent: int
    curve: StepCurve
    batch: float = 0.0
    step_s: float = 0.0
    alone_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """What one member takes of a unit of its own: KV bytes and its prefills' share of time."""

    kv_bytes: float
    prefill_busy: float


@dataclass(slots=True)
class QueueingUnits:
    """UnitEstimator with interference, queueing, service levels and headroom."""

    headroom: float = 0.9
    step: int = 10
    enforce_slo: bool = True
    interference: Interference = DEFAULT_INTERFERENCE
    tables: Mapping[str, StepTable] = field(default_factory=dict)
    name: str = "default"
    _profiles: dict[tuple[Hashable, str], Profile] = field(default_factory=dict)
    _known: dict[tuple[int, GroupKind], _Costs] = field(default_factory=dict)

    def sizes(self, llm: Llm, kinds: Sequence[GroupKind]) -> tuple[GroupKind, ...]:
        """Degrees the profile knows and the weights fit, smallest first."""
        found = [
            kind
            for kind in kinds
            if kind.gpus in self._profile(llm, kind.gpu).table.tensors
            and (not llm.allowed_tensor or kind.gpus in llm.allowed_tensor)
            and self.footprint(llm, kind) <= 1
            and not layout_error(llm, tensor=kind.gpus)
        ]
        return tuple(sorted(found))

    def cost_key(self, llm: Llm) -> Hashable:
        demand, sharing = llm.demand, llm.sharing
        return (
            llm.profile or llm.geometry, llm.weight_bytes, llm.slo, demand.prompt_tokens,
            demand.output_tokens, demand.burstiness, sharing.min_percent, sharing.max_percent,
            sharing.kv_request, sharing.exclusive,
        )  # fmt: skip

    def footprint(self, llm: Llm, kind: GroupKind) -> float:
        return self._held_bytes(llm, kind) / self.room_bytes(kind)

    def outcome(self, kind: GroupKind, asks: Sequence[Ask]) -> UnitOutcome:
        """Prediction with the shares asked for, or with the first division that suffices.

        Shares that are given stay; the others divide what those leave.
        """
        best: UnitOutcome | None = None
        for percents in self._divisions(kind, asks):
            states = [
                self._state(kind, ask, percent) for ask, percent in zip(asks, percents, strict=True)
            ]
            found = self._judge(kind, states)
            if found.fits:
                return found
            if best is None or _served(found) > _served(best):
                best = found
        assert best is not None
        return best

    def carries(self, kind: GroupKind, asks: Sequence[Ask]) -> bool:
        for percents in self._divisions(kind, asks):
            states = [
                self._state(kind, ask, percent) for ask, percent in zip(asks, percents, strict=True)
            ]
            if self._stays_within(kind, states):
                return True
        return False

    def _stays_within(self, kind: GroupKind, states: list[_State]) -> bool:
        """`_judge(...).fits`, which ends as soon as a limit is passed: batches only grow."""
        room = self.room_bytes(kind) - sum(state.costs.held_bytes for state in states)
        if room <= 0 or sum(state.percent for state in states) > 100:
            return False
        if self._prefill_busy(states) > self.headroom:
            return False
        limits = _Limits(kv_bytes=self.headroom * room, largest_part=self.headroom)
        if not self._settle(kind, states, limits):
            return False
        slowest = (state.curve.at(1.0) / (1 - self.headroom + 1e-12) for state in states)
        if any(state.step_s > most for state, most in zip(states, slowest, strict=True)):
            return False
        judged = self.enforce_slo and any(state.ask.llm.slo is not None for state in states)
        return not judged or self._judge(kind, states).fits

    def member_alone(self, kind: GroupKind, llm: Llm, rate: float, percent: int) -> Alone | None:
        """Its use of the unit at a rate and share; None where that is refused."""
        state = self._state(kind, Ask(llm=llm, rate=rate), percent)
        if not self._stays_within(kind, [state]):
            return None
        busy = rate * state.costs.prefill_s
        return Alone(kv_bytes=state.batch * state.costs.sequence_bytes, prefill_busy=busy)

    def _divisions(self, kind: GroupKind, asks: Sequence[Ask]) -> list[list[int]]:
        """Decode shares to try: by decode work, then equal ones; each within the LLM's bounds."""
        if len(asks) == 1:
            return [self._divide(kind, asks, [1.0])]
        work = [
            ask.rate * ask.llm.demand.output_tokens * self._costs(kind, ask.llm).curve(100).at(1.0)
            for ask in asks
        ]
        by_work = self._divide(kind, asks, work)
        equal = self._divide(kind, asks, [1.0] * len(asks))
        return [by_work] if by_work == equal else [by_work, equal]

    def _divide(self, kind: GroupKind, asks: Sequence[Ask], weights: Sequence[float]) -> list[int]:
        """100 % in whole steps, in proportion to `weights` above each floor."""
        bounds = [_bounds(kind, ask, len(asks)) for ask in asks]
        spare = max(0, 100 - sum(least for least, _ in bounds))
        total = sum(weights) or 1.0
        parts = []
        for (least, most), weight in zip(bounds, weights, strict=True):
            extra = int(spare * weight / total) // self.step * self.step
            parts.append(min(most, least + extra))
        left = 100 - sum(parts)
        # By what it costs, not by place or name: the answer is the same however one asks.
        order = sorted(range(len(parts)), key=lambda i: (
            -weights[i], -asks[i].llm.weight_bytes, -asks[i].rate, asks[i].llm.name))  # fmt: skip
        for index in order:
            more = min(left, bounds[index][1] - parts[index])
            if more > 0:
                parts[index] += more
                left -= more
        return parts

    def _state(self, kind: GroupKind, ask: Ask, percent: int) -> _State:
        costs = self._costs(kind, ask.llm)
        return _State(ask, costs, percent, costs.curve(percent))

    def _costs(self, kind: GroupKind, llm: Llm) -> _Costs:
        known = self._known.get((id(llm), kind))
        if known is None or known.llm is not llm:
            if len(self._known) > MOST_KNOWN:
                self._known.clear()
            known = self._known[id(llm), kind] = self._costs_of(kind, llm)
        return known

    def _costs_of(self, kind: GroupKind, llm: Llm) -> _Costs:
        demand = llm.demand
        profile = self._profile(llm, kind.gpu)

        def prefill_s(batch: float) -> float:
            return profile.prefill_s(
                tensor=kind.gpus, percent=100, batch=batch, tokens=demand.prompt_tokens
            )

        return _Costs(
            llm=llm,
            profile=profile,
            tensor=kind.gpus,
            prefill_s=prefill_s(BATCHED) / BATCHED,
            first_s=prefill_s(1.0),
            sequence_bytes=kv_per_token(llm) * (demand.prompt_tokens + demand.output_tokens),
            token_bytes=kv_per_token(llm),
            held_bytes=self._held_bytes(llm, kind),
            kv_floor=kv_floor_bytes(llm, kind),
            largest=profile.largest_batch(kind.gpus),
            context=demand.prompt_tokens + demand.output_tokens,
            overhead_s=overhead_s(llm),
            output_tokens=demand.output_tokens,
        )

    def _judge(self, kind: GroupKind, states: list[_State]) -> UnitOutcome:
        """Settles the batches, then asks every limit; the first that fails is the reason."""
        self._settle(kind, states, _Limits(kv_bytes=2 * self.room_bytes(kind), largest_part=2.0))
        prefill_busy = self._prefill_busy(states)
        room = self.room_bytes(kind) - sum(state.costs.held_bytes for state in states)
        need = sum(state.batch * state.costs.sequence_bytes for state in states)
        factor = self._prefill_factor
        unit = _Unit(
            prefill_busy=prefill_busy,
            prefill_factor=factor,
            prefills=for_prefills([_stream(state, factor) for state in states], prefill_busy),
            room=room,
            kv_use=need / room if room > 0 else float("inf"),
            kv_weight=sum(_kv_weight(state) for state in states),
        )
        queues = for_kv([_holding(state) for state in states], room)
        members = tuple(
            _member(kind, state, unit, queue) for state, queue in zip(states, queues, strict=True)
        )
        return self._verdict(kind, states, members, room)

    def _prefill_busy(self, states: list[_State]) -> float:
        """The share of time that prefills run."""
        return sum(s.ask.rate * s.costs.prefill_s for s in states) * self._prefill_factor

    @property
    def _prefill_factor(self) -> float:
        """On every prefill: there are decodes beside it, its own LLM's at least."""
        return self.interference.prefill_factor(decoding=True)

    def _settle(self, kind: GroupKind, states: list[_State], limits: "_Limits") -> bool:
        """Batches and step times at the fixed point; False where they grow beyond the limits."""
        shared = len(states) > 1
        by_prefill = self.interference.decode_factor(self._prefill_busy(states))
        for _ in range(ROUNDS):
            for state in states:
                state.alone_s = state.curve.at(state.batch)
            stretch = by_prefill
            if shared:
                stretch *= self.interference.bus_stretch(self._bus(kind, states))
            moved = False
            held = 0.0
            for state in states:
                costs = state.costs
                state.step_s = state.alone_s * stretch
                batch = state.ask.rate * costs.output_tokens * state.step_s
                moved |= batch > state.batch * 1.001 + 1e-3
                held += batch * costs.sequence_bytes
                state.batch = batch
                if batch > limits.largest_part * costs.largest:
                    held = inf
            if held > limits.kv_bytes:
                return False
            if not moved:
                break
        return True

    def _bus(self, kind: GroupKind, states: list[_State]) -> float:
        """Bandwidth all decodes ask for together, in parts of the data sheet's."""
        bandwidth = gpu_type(kind.gpu).bandwidth
        asked = 0.0
        for state in states:
            kv = state.batch * state.costs.context * state.costs.token_bytes
            per_step = (state.ask.llm.weight_bytes + kv) / kind.gpus
            busy = 1 - exp(-state.batch)
            asked += busy * bus_share(per_step, state.alone_s, bandwidth=bandwidth)
        return asked

    def _verdict(
        self,
        kind: GroupKind,
        states: list[_State],
        members: tuple[MemberOutcome, ...],
        room: float,
    ) -> UnitOutcome:
        if room <= 0:
            return UnitOutcome(members=members, refused=PlanReason.DOES_NOT_FIT,
                               message="weights and KV floors exceed memory")  # fmt: skip
        if sum(state.percent for state in states) > 100:
            return UnitOutcome(members=members, refused=PlanReason.SHARING_NOT_BENEFICIAL,
                               message="decode floors exceed 100%")  # fmt: skip
        conflicted = len(states) > 1 and self._bus(kind, states) > self.interference.bus_efficiency
        reason = PlanReason.BANDWIDTH_CONFLICT if conflicted else PlanReason.SHARING_NOT_BENEFICIAL
        for state, member in zip(states, members, strict=True):
            message = self._refusal(state.ask.llm, member)
            if message:
                return UnitOutcome(members=members, refused=reason, message=message)
        return UnitOutcome(members=members)

    def _refusal(self, llm: Llm, member: MemberOutcome) -> str:
        """Which limit this member breaks; empty when none."""
        if member.utilisation > self.headroom:
            use = f"{member.utilisation:.0%}" if member.utilisation < 10 else "over 1000%"
            return f"{llm.name} would run at {use}, headroom is {self.headroom:.0%}"
        if not self.enforce_slo or llm.slo is None or member.attainment is None:
            return ""
        if member.attainment < llm.slo.objective:
            return (
                f"{llm.name} would meet its SLO for {member.attainment:.1%} of requests, "
                f"objective {llm.slo.objective:.1%}"
            )
        return ""

    def room_bytes(self, kind: GroupKind) -> float:
        return room_bytes(kind)

    def _held_bytes(self, llm: Llm, kind: GroupKind) -> float:
        return fixed_bytes(llm, kind) + kv_floor_bytes(llm, kind)

    def _profile(self, llm: Llm, gpu: str) -> Profile:
        key = (llm.profile or llm.geometry, "" if llm.profile else gpu)
        if key not in self._profiles:
            self._profiles[key] = profile_of(llm, gpu, self.tables)
        return self._profiles[key]


def _bounds(kind: GroupKind, ask: Ask, members: int) -> tuple[int, int]:
    """Least and most decode percent of one member of several."""
    if ask.share is not None:
        return ask.share.decode, ask.share.decode
    sharing = ask.llm.sharing
    least = max(min(LEAST_PERCENT, 100 // members), sharing.min_percent or 0)
    most = int(sharing.max_percent)
    if kind.gpu == "cpu" and not sharing.exclusive:
        most = min(most, max(CPU_PERCENT, least))
    return min(least, most), most


def _prefill_percent(kind: GroupKind, ask: Ask) -> Percent:
    """A whole GPU, half of a CPU slot; within the LLM's bounds."""
    sharing = ask.llm.sharing
    if kind.gpu != "cpu" or sharing.exclusive:
        return sharing.max_percent
    return Percent(min(sharing.max_percent, max(CPU_PERCENT, sharing.min_percent or 0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """Where settling stops: KV of all members, and batches in parts of the largest measured."""

    kv_bytes: float
    largest_part: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """What a settled unit's members share."""

    prefill_busy: float
    prefill_factor: float
    prefills: Queue
    room: float
    kv_use: float
    kv_weight: float


def _member(kind: GroupKind, state: _State, unit: _Unit, for_kv: Queue) -> MemberOutcome:
    costs, step_s = state.costs, state.step_s
    prefill_s = costs.first_s * unit.prefill_factor
    decode_use = max(0.0, 1 - state.curve.at(1.0) / step_s) if step_s else 0.0
    use = max(unit.kv_use, unit.prefill_busy, state.batch / costs.largest, decode_use)
    spread = state.curve.at(state.batch + P99 * sqrt(state.batch))
    tpot_p99 = step_s / state.alone_s * spread
    # The KV floor, and of the rest a part in proportion to need.
    kv = costs.kv_floor + max(0.0, unit.room) * _kv_weight(state) / unit.kv_weight
    return MemberOutcome(
        served=state.ask.rate * min(1.0, 1.0 / max(use, 1e-9)),
        share=state.ask.share
        or Share(prefill=_prefill_percent(kind, state.ask), decode=Percent(state.percent)),
        kv=Bytes(int(kv)),
        utilisation=use,
        ttft_mean_s=unit.prefills.mean + for_kv.mean + prefill_s,
        ttft_p99_s=unit.prefills.p99 + for_kv.p99 + prefill_s,
        tpot_mean_s=step_s,
        tpot_p99_s=tpot_p99,
        attainment=_attainment(state, use, tpot_p99, unit, for_kv),
    )


def _kv_weight(state: _State) -> float:
    return max(state.batch, 0.01) * state.costs.sequence_bytes


def _served(outcome: UnitOutcome) -> float:
    return sum(member.served for member in outcome.members)


def _stream(state: _State, factor: float) -> Stream:
    ask, prefill_s = state.ask, state.costs.first_s * factor
    return Stream(rate=ask.rate, prefill_s=prefill_s, burstiness=ask.llm.demand.burstiness)


def _holding(state: _State) -> Holding:
    costs = state.costs
    held_s = costs.output_tokens * state.step_s
    return Holding(requests=state.batch, bytes=costs.sequence_bytes, seconds=held_s)


def _attainment(
    state: _State, use: float, tpot_p99: float, unit: _Unit, for_kv: Queue
) -> float | None:
    """Share of requests that meet TTFT and TPOT; waits and batch size taken as independent."""
    slo = state.ask.llm.slo
    if slo is None:
        return None
    if use >= 1:
        return 0.0
    met = 1.0
    if slo.ttft_s is not None:
        spare = slo.ttft_s - state.costs.first_s * unit.prefill_factor
        if spare < 0:
            return 0.0
        met *= unit.prefills.within(spare) * for_kv.within(spare)
    if slo.tpot_s is not None:
        mean = state.step_s
        deviation = max((tpot_p99 - mean) / P99, 1e-3 * mean)
        met *= 0.5 * (1 + erf((slo.tpot_s - mean) / deviation / sqrt(2)))
    return met
