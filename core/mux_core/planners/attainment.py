"""Objective `attainment`: the GPUs are given; the best predicted SLO attainment on them.

Spare GPUs are spent where each buys most: a member moves out of a shared group, or a second replica
takes half of its rate, or a lone one gets a larger group. It ends where nothing gains any more, so
not sharing wins exactly where it is better. A request counts by how near it comes to its target,
not only by whether it meets it: else nothing would seem to help a group that misses it by far.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import erf, sqrt

from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome
from mux_core.llm import Slo
from mux_core.planners.packing import Bin, Key
from mux_core.planners.search import Inserter, Packing

LEAST_GAIN = 1e-6
GRADES = (1.0, 1.5, 2.5, 4.0, 10.0)
"""Multiples of the target; meeting it counts for all of them."""
P99 = 2.33
_Change = tuple[Bin | None, Bin]
"""What stays of a bin, and what is opened beside it or in its place."""


def spend_spare_gpus(packing: Packing, spending: "Spending") -> Iterator[Packing]:
    """Better and better packings, starting with the given one."""
    yield packing
    while (better := spending.better(packing)) is not None:
        packing = better
        yield packing


@dataclass(slots=True)
class Spending:
    """Judges bins by how nearly their requests meet the SLO; remembers every judgement."""

    inserter: Inserter
    _met: dict[tuple[GroupKind, Key], float] = field(default_factory=dict)

    def attained(self, packing: Packing) -> float:
        """Requests/s of all bins, each by how nearly it meets its SLO."""
        return sum(self.met(there) for there in packing.bins)

    def met(self, there: Bin) -> float:
        """Requests/s of one bin, each by how nearly it meets its SLO."""
        known = self._met.get((there.kind, there.key))
        if known is None:
            known = self._met[there.kind, there.key] = self._judge(there)
        return known

    def better(self, packing: Packing) -> Packing | None:
        """The change that gains most per GPU it adds, carried out; None if none gains."""
        best: tuple[float, Packing] | None = None
        for position, there in enumerate(packing.bins):
            before = self.met(there)
            for change in _divisions(there, self.inserter, packing):
                gain = sum(self.met(made) for made in change if made is not None) - before
                worth = gain / max(1, _added(there, change))
                if gain <= LEAST_GAIN * max(1.0, before):
                    continue
                if best is not None and worth <= best[0] + 1e-9:
                    continue
                candidate = _changed(packing, position, change)
                if self.inserter.capacity.holds(candidate.counts):
                    best = worth, candidate
        return best[1] if best else None

    def _judge(self, there: Bin) -> float:
        oracle = self.inserter.oracle
        asks = [Ask(llm=oracle.items[index].llm, rate=rate) for index, rate in there.members]
        members = oracle.estimator.outcome(there.kind, asks).members
        return sum(
            min(ask.rate, found.served) * nearness(ask.llm.slo, found)
            for ask, found in zip(asks, members, strict=True)
        )


def nearness(slo: Slo | None, found: MemberOutcome) -> float:
    """Mean share of requests within the target and within multiples of it."""
    if slo is None or found.attainment is None or found.utilisation >= 1:
        return 1.0 if slo is None or found.attainment is None else 0.0
    shares = [_within(slo, found, grade) for grade in GRADES[1:]]
    return (found.attainment + sum(shares)) / len(GRADES)


def _within(slo: Slo, found: MemberOutcome, grade: float) -> float:
    """Share within `grade` times the target: a normal TPOT, a TTFT with an exponential tail."""
    share = 1.0
    if slo.tpot_s is not None and found.tpot_mean_s and found.tpot_p99_s:
        deviation = max((found.tpot_p99_s - found.tpot_mean_s) / P99, 1e-3 * found.tpot_mean_s)
        late = (grade * slo.tpot_s - found.tpot_mean_s) / deviation
        share *= 0.5 * (1 + erf(late / sqrt(2)))
    if slo.ttft_s is not None and found.ttft_mean_s and found.ttft_p99_s:
        spread = max(found.ttft_p99_s - found.ttft_mean_s, 1e-3 * found.ttft_mean_s)
        late = (grade * slo.ttft_s - found.ttft_mean_s) / spread
        share *= 1 - 0.5 * 50**-late if late > 0 else 0.5 / (1 - late)
    return share


def _added(there: Bin, change: _Change) -> int:
    """GPUs that a change takes beyond what the bin has."""
    return sum(made.kind.gpus for made in change if made is not None) - there.kind.gpus


def _changed(packing: Packing, position: int, change: _Change) -> Packing:
    kept, moved = change
    there, candidate = packing.bins[position], packing.copy()
    candidate.bins[position] = kept if kept is not None else moved
    if kept is not None:
        candidate.bins.append(moved)
    candidate.counts[there.kind] -= 1
    for made in change:
        if made is not None:
            candidate.counts[made.kind] = candidate.counts.get(made.kind, 0) + 1
    return candidate


def _divisions(there: Bin, inserter: Inserter, packing: Packing) -> Iterator[_Change]:
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
