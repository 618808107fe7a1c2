"""Whole groups per replica as a packing: the plan to beat where demand exceeds the cluster."""

from mux_core.estimator.unit import GroupKind
from mux_core.planners.inserting import Inserter, Packing, empty_packing
from mux_core.planners.packing import Item


def whole_group_packing(inserter: Inserter, items: list[Item]) -> Packing | None:
    """One replica each, then the next where a GPU gains most; None if not all get one."""
    kinds = {item.index: item.kinds[0] for item in items if item.kinds}
    if len(kinds) < len(items):
        return None
    solo = {item.index: inserter.oracle.solo(item, kinds[item.index]) for item in items}
    replicas = dict.fromkeys(kinds, 1)
    counts: dict[GroupKind, int] = {}
    for kind in kinds.values():
        counts[kind] = counts.get(kind, 0) + 1
    if not inserter.capacity.holds(counts) or min(solo.values()) <= 0:
        return None
    while True:
        best: tuple[float, Item] | None = None
        for item in items:
            kind = kinds[item.index]
            gain = _gain(item, solo[item.index], replicas[item.index]) / kind.gpus
            if gain <= 1e-9 or replicas[item.index] >= item.llm.max_replicas:
                continue
            if (best is None or gain > best[0]) and _fits(inserter, counts, kind):
                best = (gain, item)
        if best is None:
            return _packed(inserter, items, kinds, solo, replicas)
        replicas[best[1].index] += 1
        counts[kinds[best[1].index]] += 1


def _gain(item: Item, solo: float, replicas: int) -> float:
    """What MuxServe's score gains by one more replica: hot LLMs count more."""
    return item.rate * (min((replicas + 1) * solo, item.rate) - min(replicas * solo, item.rate))


def _fits(inserter: Inserter, counts: dict[GroupKind, int], kind: GroupKind) -> bool:
    return inserter.capacity.holds({**counts, kind: counts[kind] + 1})


def _packed(
    inserter: Inserter,
    items: list[Item],
    kinds: dict[int, GroupKind],
    solo: dict[int, float],
    replicas: dict[int, int],
) -> Packing:
    packing = empty_packing()
    for item in items:
        kind, count = kinds[item.index], replicas[item.index]
        served = min(item.rate, count * solo[item.index])
        for _ in range(count):
            packing.bins.append(inserter.oracle.make(kind, [(item.index, served / count)]))
        packing.counts[kind] = packing.counts.get(kind, 0) + count
        if item.rate - served > 1e-9:
            packing.unserved[item.index] = item.rate - served
    return packing
