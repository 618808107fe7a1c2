"""Estimator `default`: rates, latencies and KV of a unit with interference and queueing.

Little's law ties the batch of each member to its rate: b = r * output tokens * step time, and the
step time grows with b, with the unit's prefills and with the memory bus that all decodes share. The
fixed point is found from below, so it is the least one, where the unit settles. Requests wait
for prefills and for KV (`waiting`). A unit carries its members when each stays at or below
`headroom` of every resource and meets its service level.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf

from mux_core.costmodel.hardware import gpu_type
from mux_core.costmodel.interference import DEFAULT_INTERFERENCE, Interference, bus_share
from mux_core.costmodel.profile import Profile, profile_of
from mux_core.costmodel.table import StepTable
from mux_core.estimator.dividing import divide
from mux_core.estimator.memory import (
    fixed_bytes,
    kv_floor_bytes,
    kv_per_token,
    overhead_s,
    room_bytes,
)
from mux_core.estimator.settled import Costs, Settling, outcomes
from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome, UnitOutcome
from mux_core.footprint import layout_error
from mux_core.llm import Llm
from mux_core.planning import PlanReason

ROUNDS = 40
BATCHED = 4.0
"""Prompts that a prefill takes together where they wait."""
MOST_KNOWN = 50_000


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
    _known: dict[tuple[int, GroupKind], Costs] = field(default_factory=dict)

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

    def _stays_within(self, kind: GroupKind, states: list[Settling]) -> bool:
        """`_judge(...).fits`, which ends as soon as a limit is passed: batches only grow."""
        room = self.room_bytes(kind) - sum(state.costs.held_bytes for state in states)
        if room <= 0 or sum(state.percent for state in states) > 100:
            return False
        if self._prefill_busy(states) > self.headroom:
            return False
        limits = _Limits(kv_bytes=self.headroom * room, largest_part=self.headroom)
        if not self._settle(kind, states, limits):
            return False
        if any(state.decode_use > self.headroom for state in states):
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
            return [divide(kind, asks, [1.0], step=self.step)]
        work = [
            ask.rate * ask.llm.demand.output_tokens * self._costs(kind, ask.llm).curve(100).at(1.0)
            for ask in asks
        ]
        by_work = divide(kind, asks, work, step=self.step)
        equal = divide(kind, asks, [1.0] * len(asks), step=self.step)
        return [by_work] if by_work == equal else [by_work, equal]

    def _state(self, kind: GroupKind, ask: Ask, percent: int) -> Settling:
        costs = self._costs(kind, ask.llm)
        return Settling(ask, costs, percent, costs.curve(percent))

    def _costs(self, kind: GroupKind, llm: Llm) -> Costs:
        known = self._known.get((id(llm), kind))
        if known is None or known.llm is not llm:
            if len(self._known) > MOST_KNOWN:
                self._known.clear()
            known = self._known[id(llm), kind] = self._costs_of(kind, llm)
        return known

    def _costs_of(self, kind: GroupKind, llm: Llm) -> Costs:
        demand = llm.demand
        profile = self._profile(llm, kind.gpu)

        def prefill_s(batch: float) -> float:
            return profile.prefill_s(
                tensor=kind.gpus, percent=100, batch=batch, tokens=demand.prompt_tokens
            )

        return Costs(
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

    def _judge(self, kind: GroupKind, states: list[Settling]) -> UnitOutcome:
        """Settles the batches, then asks every limit; the first that fails is the reason."""
        self._settle(kind, states, _Limits(kv_bytes=2 * self.room_bytes(kind), largest_part=2.0))
        room = self.room_bytes(kind) - sum(state.costs.held_bytes for state in states)
        members = outcomes(
            kind,
            states,
            room=room,
            prefill_busy=self._prefill_busy(states),
            prefill_factor=self._prefill_factor,
        )
        return self._verdict(kind, states, members, room)

    def _prefill_busy(self, states: list[Settling]) -> float:
        """The share of time that prefills run."""
        return sum(s.ask.rate * s.costs.prefill_s for s in states) * self._prefill_factor

    @property
    def _prefill_factor(self) -> float:
        """On every prefill: there are decodes beside it, its own LLM's at least."""
        return self.interference.prefill_factor(decoding=True)

    def _settle(self, kind: GroupKind, states: list[Settling], limits: "_Limits") -> bool:
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

    def _bus(self, kind: GroupKind, states: list[Settling]) -> float:
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
        states: list[Settling],
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """Where settling stops: KV of all members, and batches in parts of the largest measured."""

    kv_bytes: float
    largest_part: float


def _served(outcome: UnitOutcome) -> float:
    return sum(member.served for member in outcome.members)
