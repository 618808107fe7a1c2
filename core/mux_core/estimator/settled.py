"""A unit whose batches have settled: what that means for the requests of its members."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import erf, inf, sqrt

from mux_core.costmodel.profile import Profile, StepCurve
from mux_core.estimator.dividing import prefill_percent
from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome
from mux_core.estimator.waiting import Holding, Queue, Stream, for_kv, for_prefills
from mux_core.llm import Llm
from mux_core.placement import Share
from mux_core.units import Bytes, Percent

P99 = 2.33
MOST_GROWTH = 0.9
"""Beyond it the approximation says nothing; the batch hardly settles."""


@dataclass(slots=True, kw_only=True)
class Costs:
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
class Settling:
    """One member while the fixed point is sought."""

    ask: Ask
    costs: Costs
    percent: int
    curve: StepCurve
    batch: float = 0.0
    step_s: float = 0.0
    alone_s: float = 0.0

    @property
    def decode_use(self) -> float:
        """Part of what its decodes can do that is asked of them.

        Near the limit the batch grows without bound: of a step that is linear in its batch, all but
        the constant part is use. A step that grows faster than that is fastest at some batch, and
        beyond it the more wait the slower they are served.
        """
        if not self.step_s:
            return 0.0
        pace = self.ask.rate * self.costs.output_tokens * self.curve.cheapest_s
        return max(1 - self.curve.at(1.0) / self.step_s, pace * self.step_s / self.alone_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Together:
    """What the members of a settled unit share."""

    prefill_busy: float
    prefill_factor: float
    prefills: Queue
    room: float
    kv_use: float
    kv_weight: float


def outcomes(
    kind: GroupKind,
    states: Sequence[Settling],
    *,
    room: float,
    prefill_busy: float,
    prefill_factor: float,
) -> tuple[MemberOutcome, ...]:
    """What members at their fixed point get. `room`: bytes for KV; `prefill_factor`: on prefills,
    which run for `prefill_busy` of the time.
    """
    need = sum(state.batch * state.costs.sequence_bytes for state in states)
    streams = [_stream(state, prefill_factor) for state in states]
    unit = _Together(
        prefill_busy=prefill_busy,
        prefill_factor=prefill_factor,
        prefills=for_prefills(streams, prefill_busy),
        room=room,
        kv_use=need / room if room > 0 else inf,
        kv_weight=sum(_kv_weight(state) for state in states),
    )
    queues = for_kv([_holding(state) for state in states], room)
    return tuple(
        _member(kind, state, unit, queue) for state, queue in zip(states, queues, strict=True)
    )


def _member(kind: GroupKind, state: Settling, unit: _Together, kv_queue: Queue) -> MemberOutcome:
    costs, step_s = state.costs, state.step_s
    prefill_s = costs.first_s * unit.prefill_factor
    use = max(unit.kv_use, unit.prefill_busy, state.batch / costs.largest, state.decode_use)
    spread = state.curve.at(state.batch + P99 * sqrt(state.batch))
    tpot_p99 = step_s / state.alone_s * spread
    # The KV floor, and of the rest a part in proportion to need.
    kv = costs.kv_floor + max(0.0, unit.room) * _kv_weight(state) / unit.kv_weight
    return MemberOutcome(
        served=state.ask.rate * min(1.0, 1.0 / max(use, 1e-9)),
        share=state.ask.share
        or Share(prefill=prefill_percent(kind, state.ask), decode=Percent(state.percent)),
        kv=Bytes(int(kv)),
        held=Bytes(int(state.batch * costs.sequence_bytes)),
        utilisation=use,
        ttft_mean_s=unit.prefills.mean + kv_queue.mean + prefill_s,
        ttft_p99_s=unit.prefills.p99 + kv_queue.p99 + prefill_s,
        tpot_mean_s=step_s,
        tpot_p99_s=tpot_p99,
        attainment=_attainment(state, use, tpot_p99, unit, kv_queue),
    )


def _kv_weight(state: Settling) -> float:
    return max(state.batch, 0.01) * state.costs.sequence_bytes


def _stream(state: Settling, factor: float) -> Stream:
    ask, prefill_s = state.ask, state.costs.first_s * factor
    return Stream(rate=ask.rate, prefill_s=prefill_s, burstiness=ask.llm.demand.burstiness)


def _holding(state: Settling) -> Holding:
    costs = state.costs
    held_s = costs.output_tokens * state.step_s
    return Holding(requests=state.batch, bytes=costs.sequence_bytes, seconds=held_s,
                   swing=_swing(state))  # fmt: skip


def _swing(state: Settling) -> float:
    """Variance of the batch over its mean, 1 / (1 - e): a batch above its mean makes every step
    longer, in which more arrive. e: relative growth of a step over that of its batch (the linear
    noise of a queue whose servers slow each other down, around where it settles).
    """
    batch, curve = state.batch, state.curve
    if batch <= 0:
        return 1.0
    low, high = max(0.0, batch - sqrt(batch)), batch + sqrt(batch)
    growth = (curve.at(high) - curve.at(low)) / (high - low) * batch / curve.at(batch)
    return 1 / (1 - min(growth, MOST_GROWTH))


def _attainment(
    state: Settling, use: float, tpot_p99: float, unit: _Together, kv_queue: Queue
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
        met *= unit.prefills.within(spare) * kv_queue.within(spare)
    if slo.tpot_s is not None:
        mean = state.step_s
        deviation = max((tpot_p99 - mean) / P99, 1e-3 * mean)
        met *= 0.5 * (1 + erf((slo.tpot_s - mean) / deviation / sqrt(2)))
    return met
