"""What a unit can at best serve, as choices of its members that add up.

An estimator couples the members of a unit through two figures: MuxServe's rules through the sum of
prefill times and the KV each request of a second holds, estimator `default` through the time spent
in prefills and the stretch of the memory bus. In a *box*, an interval of each, the members come
apart: every member picks a decode share and a rate, which costs memory, percent and parts of the
two figures; rates are taken at the box's most favourable corner. Whatever a unit really serves is
one such choice in one box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from mux_core.costmodel.hardware import gpu_type
from mux_core.estimator.curves import Curve
from mux_core.estimator.muxserve import KV_FRACTION
from mux_core.estimator.queueing import MemberCosts, QueueingUnits
from mux_core.estimator.reference import LEAST_PERCENT, ReferenceUnits
from mux_core.estimator.unit import Ask, GroupKind, UnitEstimator
from mux_core.llm import Llm
from mux_core.placement import Share
from mux_core.units import GIB, Percent

Array = NDArray[np.float64]
Whole = NDArray[np.intp]
PERCENT_UNIT = 10
RATES = 48
"""Rates of a member that estimator `default` is asked for, evenly up to the highest."""
FEWEST_BATCH = 0.01
BATCHES = 240
HARDLY = 0.002
ROUNDING = 0.995
"""The bus is read off between two rounds of settling, which differ by a thousandth."""
NEVER = -1e12
"""A rate below every other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What one LLM may do in each of B boxes, at one decode share: arrays [B, choices].

    `units`: its percent, in tens. `rate`: requests/s at most, `NEVER` where impossible. `kv` in
    parts of the group's memory; `first` and `second` in parts of the box's two figures.
    """

    units: int
    rate: Array
    kv: Array
    first: Array
    second: Array

    def part(self, which: Whole) -> "Choices":
        """In some of the boxes."""
        return Choices(
            units=self.units,
            rate=self.rate[which],
            kv=self.kv[which],
            first=self.first[which],
            second=self.second[which],
        )

    def joined(self, other: "Choices") -> "Choices":
        """In these boxes and others."""
        return Choices(
            units=self.units,
            rate=np.concatenate([self.rate, other.rate]),
            kv=np.concatenate([self.kv, other.kv]),
            first=np.concatenate([self.first, other.first]),
            second=np.concatenate([self.second, other.second]),
        )


def alike(levels: list[Choices]) -> list[list[int]]:
    """Places of shares in groups, of which the smallest does all but as well as the others."""
    groups: list[list[int]] = []
    for at, level in enumerate(levels):
        first = levels[groups[-1][0]] if groups else None
        if (
            first is not None
            and first.rate.shape == level.rate.shape
            and _hardly_worse(first, level)
        ):
            groups[-1].append(at)
        else:
            groups.append([at])
    return groups


def merged(levels: list[Choices], groups: list[list[int]]) -> list[Choices]:
    """One share per group: as small as the smallest, as good as the best."""
    return [
        Choices(
            units=levels[group[0]].units,
            rate=np.max([levels[at].rate for at in group], axis=0),
            kv=np.min([levels[at].kv for at in group], axis=0),
            first=np.min([levels[at].first for at in group], axis=0),
            second=np.min([levels[at].second for at in group], axis=0),
        )
        for group in groups
    ]


def _hardly_worse(less: Choices, more: Choices) -> bool:
    return bool(
        (more.rate <= less.rate + HARDLY * np.abs(less.rate)).all()
        and (less.kv <= more.kv + HARDLY).all()
        and (less.first <= more.first + HARDLY).all()
        and (less.second <= more.second + HARDLY).all()
    )


@singledispatch
def first_boxes(estimator: UnitEstimator) -> Array:
    """[B, 4]: low and high of both figures; together they cover every unit."""
    raise NotImplementedError(f"no relaxation of estimator {estimator.name}")


@singledispatch
def choices(
    estimator: UnitEstimator, kind: GroupKind, llm: Llm, rate: float, boxes: Array
) -> list[Choices]:
    """By decode share, what `llm` may do in a unit of several, up to `rate`."""
    raise NotImplementedError(f"no relaxation of estimator {estimator.name}")


@first_boxes.register
def _(estimator: ReferenceUnits) -> Array:
    prefills = [0.0, 0.4, 0.8, 1.4, 2.2, 3.5, 6.0, 60.0]
    held = [4.0 * 1.3**step for step in range(24)]
    return _grid(prefills, [0.0, *held, 1e9])


@choices.register
def _(
    estimator: ReferenceUnits, kind: GroupKind, llm: Llm, rate: float, boxes: Array
) -> list[Choices]:
    """Figures: P, the sum of prefill seconds, and H, seconds of KV that a request/s holds.

    t = b / (decode + P) and b <= t H, as KV is divided in proportion to rate x KV per token.
    """
    tenant = estimator.tenant(Ask(llm=llm, rate=rate), kind)
    memory = KV_FRACTION * kind.gpus * kind.memory / GIB
    per_rate = tenant.kv_gb_per_sequence / memory * boxes[:, 2]
    found = []
    for percent in (LEAST_PERCENT, *range(40, 101, PERCENT_UNIT)):
        if percent > max(llm.sharing.max_percent, LEAST_PERCENT):
            continue
        rates, prefills = _by_batch(estimator.curve(tenant, kind.gpus, percent), rate, boxes)
        least = max(percent, llm.sharing.min_percent or 0)
        found.append(
            Choices(
                units=least // PERCENT_UNIT,
                rate=rates,
                kv=np.where(rates > 0, rates, 0.0) * per_rate[:, None],
                first=prefills / boxes[:, 1:2],
                second=np.zeros_like(rates),
            )
        )
    return found


def _by_batch(curve: Curve, most: float, boxes: Array) -> tuple[Array, Array]:
    """The highest rate in each measured interval of batches, and the lowest of all; prefills."""
    low_p, high_p, high_h = boxes[:, 0:1], boxes[:, 1:2], boxes[:, 3:4]
    last = np.array(curve.batches, dtype=float)
    first = np.concatenate([[1.0], last[:-1] + 1])
    decode = np.array(curve.decode_s[: len(last)])
    at = np.minimum(np.arange(len(last)), len(curve.prefill_s) - 1)
    prefill = np.broadcast_to(np.array(curve.prefill_s)[at], (len(boxes), len(last)))
    fixed = curve.output_tokens * decode + low_p
    per_batch = curve.output_tokens * curve.overhead_s
    batch = np.minimum(last, np.floor((high_h - fixed) / per_batch + 1e-9))
    rates = np.minimum(batch / (fixed + np.maximum(batch, 1) * per_batch), most)
    allowed = (batch >= first) & (first <= most * high_h) & (prefill <= high_p)
    rates = np.where(allowed, rates, NEVER)
    # Where KV is dear, one sequence at the lowest rate that still has KV for it.
    lowest = np.where(allowed.any(axis=1, keepdims=True), np.minimum(1 / high_h, most), NEVER)
    return (
        np.concatenate([rates, lowest], axis=1),
        np.concatenate([prefill, prefill.min(axis=1, keepdims=True)], axis=1),
    )


@first_boxes.register
def _(estimator: QueueingUnits) -> Array:
    most = estimator.headroom
    return _grid([most * part for part in (0, 0.2, 0.4, 0.6, 0.8, 1)],
                 [1.0, 1.02, 1.06, 1.12, 1.2, 1.35, 1.6, 2.0, 3.0, 10.0])  # fmt: skip


@choices.register
def _(
    estimator: QueueingUnits, kind: GroupKind, llm: Llm, rate: float, boxes: Array
) -> list[Choices]:
    """Figures: the part of time in prefills, and the stretch by the memory bus."""
    found = []
    for percent in range(LEAST_PERCENT, 101, PERCENT_UNIT):
        if percent > max(llm.sharing.max_percent, LEAST_PERCENT):
            break
        most = min(rate, _highest_alone(estimator, kind, llm, percent))
        least = max(percent, llm.sharing.min_percent or 0)
        if most > 0:
            costs = estimator.costs(kind, llm)
            found.append(
                _by_rate(estimator, kind, costs, percent, most, boxes, least // PERCENT_UNIT)
            )
    return found


def _by_rate(
    estimator: QueueingUnits,
    kind: GroupKind,
    costs: MemberCosts,
    percent: int,
    most: float,
    boxes: Array,
    units: int,
) -> Choices:
    """Each interval of rates: its upper end at the costs of its lower end."""
    batches, steps = _steps(costs, percent, estimator.headroom)
    carried = np.maximum.accumulate(batches / (costs.output_tokens * steps))
    bus = estimator.interference
    slower = np.array([bus.decode_factor(low) for low in boxes[:, 0]]) * boxes[:, 2]
    ends = most * np.arange(RATES + 1) / RATES
    load = slower[:, None] * ends[None, :-1]
    batch = np.interp(load, carried, batches, left=0.0)
    step = np.interp(batch, batches, steps) * slower[:, None]
    allowed = (load <= carried[-1]) & (
        step <= costs.curve(percent).at(1.0) / (1 - estimator.headroom)
    )
    read = (1 - np.exp(-batch)) * (
        costs.llm.weight_bytes + batch * costs.context * costs.token_bytes
    )
    asked = read / kind.gpus / (step / slower[:, None]) / gpu_type(kind.gpu).bandwidth
    room = estimator.headroom * estimator.room_bytes(kind)
    prefill = ends[:-1] * costs.prefill_s * bus.prefill_factor(decoding=True)
    return Choices(
        units=units,
        rate=np.where(allowed, ends[None, 1:], NEVER),
        kv=batch * costs.sequence_bytes / room,
        first=prefill[None, :] / boxes[:, 1:2],
        second=ROUNDING * asked / (bus.bus_efficiency * boxes[:, 3:4]),
    )


def _steps(costs: MemberCosts, percent: int, headroom: float) -> tuple[Array, Array]:
    """(batches, seconds of a step alone), as the estimator's last round sees them."""
    curve = costs.curve(percent)
    batches = np.geomspace(FEWEST_BATCH, headroom * costs.largest, BATCHES)
    # A settled batch exceeds the one its step was priced at by what counts as standing still.
    return batches, np.array([curve.at(max(0.0, (b - 1e-3) / 1.001)) for b in batches])


def _highest_alone(estimator: QueueingUnits, kind: GroupKind, llm: Llm, percent: int) -> float:
    share = Share(decode=Percent(percent))
    low, high = 0.0, 1e4
    while high - low > 1e-3 * high and high > 1e-6:
        middle = (low + high) / 2
        if estimator.carries(kind, [Ask(llm=llm, rate=middle, share=share)]):
            low = middle
        else:
            high = middle
    return high


def _grid(first: Sequence[float], second: Sequence[float]) -> Array:
    found = [(*one, *other) for one, other in product(pairwise(first), pairwise(second))]
    return np.array(found, dtype=float)
