"""How the SMs of a unit, or a CPU's slots, are divided among its members."""

from collections.abc import Sequence

from mux_core.estimator.unit import Ask, GroupKind
from mux_core.units import Percent

LEAST_PERCENT = 10
CPU_PERCENT = 50
"""Most that a phase of a sharing member takes of a CPU slot: no part of a step fills all cores, so
two steps on halves beat one after the other (`benchmarks/bench_up_vs_separate.py`, where prefill at
100 % served 0.6 times the rate)."""


def divide(
    kind: GroupKind, asks: Sequence[Ask], weights: Sequence[float], *, step: int
) -> list[int]:
    """Decode percents: 100 in whole steps, in proportion to `weights` above each floor."""
    bounds = [bounds_of(kind, ask, len(asks)) for ask in asks]
    spare = max(0, 100 - sum(least for least, _ in bounds))
    total = sum(weights) or 1.0
    parts = []
    for (least, most), weight in zip(bounds, weights, strict=True):
        extra = int(spare * weight / total) // step * step
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


def bounds_of(kind: GroupKind, ask: Ask, members: int) -> tuple[int, int]:
    """Least and most decode percent of one member of several."""
    if ask.share is not None:
        return ask.share.decode, ask.share.decode
    sharing = ask.llm.sharing
    least = max(min(LEAST_PERCENT, 100 // members), sharing.min_percent or 0)
    most = int(sharing.max_percent)
    if kind.gpu == "cpu" and not sharing.exclusive:
        most = min(most, max(CPU_PERCENT, least))
    return min(least, most), most


def prefill_percent(kind: GroupKind, ask: Ask) -> Percent:
    """A whole GPU, half of a CPU slot; within the LLM's bounds."""
    sharing = ask.llm.sharing
    if kind.gpu != "cpu" or sharing.exclusive:
        return sharing.max_percent
    return Percent(min(sharing.max_percent, max(CPU_PERCENT, sharing.min_percent or 0)))
