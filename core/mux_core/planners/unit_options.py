"""What one member can at best get out of a unit, as options that cost memory, SM share and prefill.

The bound replaces the estimator's answer for a whole unit by one option per member, chosen under
three budgets that every feasible unit respects. Each option stands for an interval and takes the
best of it: the rate of its upper end at the cost of its lower end. So whatever a real unit serves,
some choice of options serves at least as much within the budgets.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import pairwise

from mux_core.estimator.muxserve import KV_FRACTION
from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.reference import LEAST_PERCENT, ReferenceUnits
from mux_core.estimator.unit import Ask, GroupKind, UnitEstimator
from mux_core.llm import Llm
from mux_core.units import GIB

SM_UNIT = 10
GRID = 1.25
"""Ratio between neighbouring batches or rates of the options."""
PREFILL_GRID = 1.5
PREFILL_RANGE = (0.05, 40.0)
"""Seconds of prefill per cycle of a unit; below and above, one interval each."""
RATES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """At most `rate` for parts of the unit's memory, SM units and prefill budget."""

    rate: float
    memory: float
    percent: int
    prefill: float


Options = list[list[Option]]
"""By LLM."""


@singledispatch
def unit_options(
    estimator: UnitEstimator, kind: GroupKind, llms: Sequence[Llm], rates: Sequence[float]
) -> Iterator[Options]:
    """Cases that together cover every unit of `kind`; for each, the options of every LLM."""
    raise NotImplementedError(f"no options for estimator {estimator.name}")


@unit_options.register
def _reference_options(
    estimator: ReferenceUnits, kind: GroupKind, llms: Sequence[Llm], rates: Sequence[float]
) -> Iterator[Options]:
    """One case per interval of the unit's prefill time: t = b / (decode + prefills)."""
    fitting = [bool(estimator.sizes(llm, [kind])) for llm in llms]
    edges = [0.0, PREFILL_RANGE[0]]
    while edges[-1] < PREFILL_RANGE[1]:
        edges.append(edges[-1] * PREFILL_GRID)
    for low, high in pairwise(edges):
        yield [
            _pruned(_batches(estimator, kind, llm, rate, low, high)) if fits else []
            for llm, rate, fits in zip(llms, rates, fitting, strict=True)
        ]


def _batches(
    estimator: ReferenceUnits, kind: GroupKind, llm: Llm, rate: float, low: float, high: float
) -> Iterator[Option]:
    tenant = estimator.tenant(Ask(llm=llm, rate=rate), kind)
    memory = KV_FRACTION * kind.gpus * kind.memory / GIB
    held = estimator.footprint(llm, kind)
    for percent in (LEAST_PERCENT, *range(40, 101, 10)):
        if percent > llm.sharing.max_percent:
            continue
        curve = estimator.curve(tenant, kind.gpus, percent)
        start = 1
        while start <= curve.batches[-1]:
            end = _end(curve.segment_end, start)
            used = held + start * tenant.kv_gb_per_sequence / memory
            own = min(curve.prefills[start : end + 1])
            if used > 1 or own > high:
                break
            served = max(
                curve.throughput(batch, max(low, curve.prefills[batch])) for batch in (start, end)
            )
            yield Option(rate=min(served, rate), memory=used, percent=percent, prefill=own / high)
            if served >= rate:
                break
            start = end + 1


def _end(segment_end: Callable[[int], int], start: int) -> int:
    """The last batch of the interval that begins at `start`, within one measured batch."""
    return min(segment_end(start), max(start, int(start * GRID)))


@unit_options.register
def _queueing_options(
    estimator: QueueingUnits, kind: GroupKind, llms: Sequence[Llm], rates: Sequence[float]
) -> Iterator[Options]:
    """One case: a member gets no more in company than alone with the same share."""
    yield [
        _pruned(_alone(estimator, kind, llm, rate)) if estimator.sizes(llm, [kind]) else []
        for llm, rate in zip(llms, rates, strict=True)
    ]


def _alone(estimator: QueueingUnits, kind: GroupKind, llm: Llm, rate: float) -> Iterator[Option]:
    held = estimator.footprint(llm, kind)
    room = estimator.room_bytes(kind) * estimator.headroom
    for percent in range(LEAST_PERCENT, 101, SM_UNIT):
        if percent > llm.sharing.max_percent:
            break
        low = 0.0
        for step in range(1, RATES + 1):
            high = rate * (step / RATES) ** 2
            at = max(low, rate * 1e-6)
            state = estimator.member_alone(kind, llm, at, percent)
            if state is None:
                break
            used = held + state.kv_bytes / room
            if used > 1:
                break
            yield Option(
                rate=high,
                memory=used,
                percent=percent,
                prefill=state.prefill_busy / estimator.headroom,
            )
            low = high


def _pruned(options: Iterator[Option]) -> list[Option]:
    """Without options that another beats in every respect."""
    ordered = sorted(options, key=lambda o: (-o.rate, o.memory, o.percent, o.prefill))
    kept: list[Option] = []
    for option in ordered:
        if not any(
            other.memory <= option.memory + 1e-12
            and other.percent <= option.percent
            and other.prefill <= option.prefill + 1e-12
            for other in kept
        ):
            kept.append(option)
    return kept
