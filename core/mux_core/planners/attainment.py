"""Objective `attainment`: the GPUs are given; the best predicted SLO attainment on them.

Spare GPUs are spent where most requests miss their SLO: a member moves out of a shared group, or a
second replica takes half of its rate. It ends where nothing gains any more, so not sharing wins
exactly where it is better.
"""

from collections.abc import Iterator

from mux_core.estimator.unit import Ask
from mux_core.planners.packing import Bin
from mux_core.planners.search import Inserter, Packing

LEAST_GAIN = 1e-6


def spend_spare_gpus(packing: Packing, inserter: Inserter) -> Iterator[Packing]:
    """Better and better packings, starting with the given one."""
    yield packing
    while True:
        better = _one_step(packing, inserter)
        if better is None:
            return
        packing = better
        yield packing


def met_rate(there: Bin, inserter: Inserter) -> float:
    """Requests/s of a bin that are served within their SLO."""
    return sum(met for met, _ in _met(there, inserter))


def _met(there: Bin, inserter: Inserter) -> list[tuple[float, int]]:
    oracle = inserter.oracle
    asks = [Ask(llm=oracle.items[index].llm, rate=rate) for index, rate in there.members]
    members = oracle.estimator.outcome(there.kind, asks).members
    return [
        (min(rate, found.served) * (1.0 if found.attainment is None else found.attainment), index)
        for (index, rate), found in zip(there.members, members, strict=True)
    ]


def _one_step(packing: Packing, inserter: Inserter) -> Packing | None:
    """The first change that helps, looking at the bins with most missed requests first."""
    losses = []
    for position, there in enumerate(packing.bins):
        lost = sum(rate for _, rate in there.members) - met_rate(there, inserter)
        if lost > LEAST_GAIN:
            losses.append((-lost, position))
    for _, position in sorted(losses):
        best = _relieve(packing, position, inserter)
        if best is not None:
            return best
    return None


def _relieve(packing: Packing, position: int, inserter: Inserter) -> Packing | None:
    there = packing.bins[position]
    before = met_rate(there, inserter)
    found: tuple[float, Packing] | None = None
    for kept, moved in _divisions(there, inserter, packing):
        gain = met_rate(moved, inserter) - before
        if kept is not None:
            gain += met_rate(kept, inserter)
        if gain > LEAST_GAIN * max(1.0, before) and (found is None or gain > found[0] + 1e-9):
            candidate = packing.copy()
            candidate.bins[position] = kept if kept is not None else moved
            candidate.counts[there.kind] -= 1
            for added in (kept, moved):
                if added is not None:
                    counts = candidate.counts
                    counts[added.kind] = counts.get(added.kind, 0) + 1
            if kept is not None:
                candidate.bins.append(moved)
            if inserter.capacity.holds(candidate.counts):
                found = (gain, candidate)
    return found[1] if found else None


def _divisions(
    there: Bin, inserter: Inserter, packing: Packing
) -> Iterator[tuple[Bin | None, Bin]]:
    """(what stays, what goes): a member to a group of its own, half its rate, or a larger group."""
    oracle = inserter.oracle
    for index, rate in there.members:
        item = oracle.items[index]
        others = [member for member in there.members if member[0] != index]
        replicas = sum(1 for other in packing.bins if other.holds(index))
        for kind in item.kinds:
            if others:
                yield oracle.make(there.kind, others, there.fixed), oracle.make(
                    kind, [(index, rate)])  # fmt: skip
            elif kind.gpus > there.kind.gpus:
                yield None, oracle.make(kind, [(index, rate)])
            if replicas < item.llm.max_replicas:
                half = [*others, (index, rate / 2)]
                yield oracle.make(there.kind, half, there.fixed), oracle.make(
                    kind, [(index, rate / 2)])  # fmt: skip
