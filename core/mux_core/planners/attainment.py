"""Objective `attainment`: the GPUs are given; the best predicted SLO attainment on them.

Each step is the change that gains most per GPU it adds: a member moves out of a shared group, or a
second replica takes half of its rate, or a lone one gets a larger group; or, for no GPU at all, a
member or half its rate moves from a group that misses much to another one. Where none of these
gains, the other group passes one of its members on to a third. It ends where nothing gains any
more, so not sharing wins exactly where it is better. A request counts by how near it comes to its
target, not only by whether it meets it: else nothing would seem to help a group that misses it by
far; and it counts less where it waits long for neighbours.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import erf, sqrt

from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome
from mux_core.llm import Slo
from mux_core.planners.inserting import Inserter, Packing, replicas_of
from mux_core.planners.packing import Bin, Key, Oracle

LEAST_GAIN = 1e-6
GRADES = {1.0: 3.0, 1.5: 2.0, 2.5: 3.0, 4.0: 3.0, 10.0: 2.0}
"""Multiples of the target, and how much it counts to meet each; meeting the target is all."""
MOST_STRETCH = 1.25
"""Mean TTFT in parts of what it would be alone in that group: a member whose neighbours hold it up
for longer counts for less."""
P99 = 2.33
UNEVEN = 1.4
"""What requests hold varies by their number, and by lengths that vary as much as their mean."""
LEAST_SERVED = 0.5
"""Part of the worst ratio without regard to attainment that every member keeps in any case."""
WORST_BINS = 4
"""Groups that miss most; only from them rates move to others."""
MOST_PASSING = 40
"""Groups among which members are passed on to a third: the ways to do so grow with their square."""
FREE = 0.5
"""GPUs that a change is priced at which adds none."""


@dataclass(frozen=True, slots=True)
class _Change:
    """Bins in place of those at some positions (None: the bin goes), and bins beside them."""

    replaced: Mapping[int, Bin | None]
    opened: tuple[Bin, ...] = ()

    @property
    def made(self) -> Iterator[Bin]:
        yield from (there for there in self.replaced.values() if there is not None)
        yield from self.opened


def with_all_arrivals(packing: Packing, oracle: Oracle) -> Packing:
    """What is planned to stay unserved arrives all the same, at the replicas there are."""
    if not packing.unserved:
        return packing
    held = packing.rates()
    asked = packing.copy()
    for at, there in enumerate(packing.bins):
        all_rates = [(i, rate * oracle.items[i].rate / held[i]) for i, rate in there.members]
        asked.bins[at] = oracle.make(there.kind, all_rates, there.fixed)
    return asked


def spend_spare_gpus(packing: Packing, spending: "Spending") -> Iterator[Packing]:
    """Better and better packings, starting with the given one."""
    yield packing
    while (better := spending.better(packing)) is not None:
        packing = better
        yield packing


@dataclass(slots=True)
class Spending:
    """Judges bins by how nearly their requests meet the SLO; remembers every judgement.

    `floor`: part of its rate that no change may take a member below, whatever the others gain.
    """

    inserter: Inserter
    floor: float = LEAST_SERVED
    _met: dict[tuple[GroupKind, Key], float] = field(default_factory=dict)
    _alone: dict[tuple[GroupKind, int, float], float] = field(default_factory=dict)

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
        simple = chain(_divisions(packing, self.inserter), self._shifts(packing))
        return self._best(packing, simple) or self._best(packing, self._passes(packing))

    def _best(self, packing: Packing, changes: Iterable[_Change]) -> Packing | None:
        best: tuple[float, Packing] | None = None
        for change in changes:
            replaced = [packing.bins[position] for position in change.replaced]
            before = sum(map(self.met, replaced))
            gain = sum(map(self.met, change.made)) - before
            if gain <= LEAST_GAIN * max(1.0, before):
                continue
            if not self._keeps_floor(change.made, replaced):
                continue
            candidate = _changed(packing, change)
            worth = gain / max(FREE, candidate.gpus - packing.gpus)
            better = best is None or worth > best[0] + 1e-9
            if better and self.inserter.capacity.holds(candidate.counts):
                best = worth, candidate
        return best[1] if best else None

    def _keeps_floor(self, made: Iterable[Bin], replaced: Iterable[Bin]) -> bool:
        """Whether every member is served enough: many do not gain what ruins a few."""
        worst = min(map(self.worst, made))
        return worst >= self.floor or worst >= min(map(self.worst, replaced))

    def worst(self, there: Bin) -> float:
        """The least part of its rate that a member of the bin is served."""
        oracle = self.inserter.oracle
        if oracle.fits(there.kind, there.members):
            return 1.0
        return min(found.served / ask.rate for ask, found in self._outcomes(there))

    def _outcomes(self, there: Bin) -> list[tuple[Ask, MemberOutcome]]:
        oracle = self.inserter.oracle
        asks = [Ask(llm=oracle.items[index].llm, rate=rate) for index, rate in there.members]
        members = oracle.estimator.outcome(there.kind, asks).members
        return list(zip(asks, members, strict=True))

    def _shifts(self, packing: Packing) -> Iterator[_Change]:
        """From the bins that miss most: a member, or half its rate, to another bin."""
        for source in self._worst_bins(packing, WORST_BINS):
            for target in range(len(packing.bins)):
                if target != source:
                    yield from _moved(packing, source, target, self.inserter)

    def _worst_bins(self, packing: Packing, most: int) -> list[int]:
        """Positions of the bins that miss most requests/s, worst first."""
        bins = packing.bins
        lost = [sum(rate for _, rate in there.members) - self.met(there) for there in bins]
        return sorted(range(len(bins)), key=lambda at: (-lost[at], at))[:most]

    def _passes(self, packing: Packing) -> Iterator[_Change]:
        """From the bin that misses most: a member, or half its rate, to another bin, which passes
        one that it had on to a third."""
        if len(packing.bins) > MOST_PASSING:
            return
        for source in self._worst_bins(packing, 1):
            for target in range(len(packing.bins)):
                if target == source:
                    continue
                for first in _moved(packing, source, target, self.inserter):
                    yield from _passed_on(packing, first, target, self.inserter)

    def _judge(self, there: Bin) -> float:
        pairs = self._outcomes(there)
        running = sum(a.rate * a.llm.demand.output_tokens * (m.tpot_mean_s or 0) for a, m in pairs)
        return sum(
            min(ask.rate, found.served)
            * nearness(ask.llm.slo, found, running)
            * self._fairness(there.kind, member, ask, found)
            for member, (ask, found) in zip(there.members, pairs, strict=True)
        )

    def _fairness(
        self, kind: GroupKind, member: tuple[int, float], ask: Ask, found: MemberOutcome
    ) -> float:
        """Less than 1 for a member whose first tokens its neighbours hold up by much."""
        if ask.llm.slo is None or not found.ttft_mean_s or found.utilisation >= 1:
            return 1.0
        alone = self._alone.get((kind, *member))
        if alone is None:
            (one,) = self.inserter.oracle.estimator.outcome(kind, [ask]).members
            alone = self._alone[(kind, *member)] = one.ttft_mean_s or 0.0
        return min(1.0, MOST_STRETCH * alone / found.ttft_mean_s)


def nearness(slo: Slo | None, found: MemberOutcome, running: float) -> float:
    """Mean share of requests within the target and within multiples of it, while chance does not
    overload the group. `running`: requests that decode in it at once, on average.
    """
    if slo is None or found.attainment is None:
        return 1.0
    if found.utilisation >= 1:
        return 0.0
    shares = [found.attainment, *(_within(slo, found, grade) for grade in list(GRADES)[1:])]
    calm = _calm(found.utilisation, running)
    met = sum(weight * share for weight, share in zip(GRADES.values(), shares, strict=True))
    return _patience(slo, found) * calm * met / sum(GRADES.values())


def _patience(slo: Slo, found: MemberOutcome) -> float:
    """Less than 1 where even the mean wait passes the target: few wait, but they wait long."""
    if slo.ttft_s is None or not found.ttft_mean_s:
        return 1.0
    return min(1.0, slo.ttft_s / found.ttft_mean_s)


def _calm(use: float, running: float) -> float:
    """Share of time in which what `running` requests need stays below what there is."""
    if use <= 0 or running <= 0:
        return 1.0
    deviation = use * UNEVEN / sqrt(running)
    return 0.5 * (1 + erf((1 - use) / deviation / sqrt(2)))


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


def _changed(packing: Packing, change: _Change) -> Packing:
    candidate = packing.copy()
    for position in change.replaced:
        candidate.counts[packing.bins[position].kind] -= 1
    bins = [change.replaced.get(at, there) for at, there in enumerate(packing.bins)]
    candidate.bins = [there for there in [*bins, *change.opened] if there is not None]
    for made in change.made:
        candidate.counts[made.kind] = candidate.counts.get(made.kind, 0) + 1
    return candidate


def _divisions(packing: Packing, inserter: Inserter) -> Iterator[_Change]:
    """A member to a group of its own, half its rate to one, or a larger group for a lone one."""
    oracle = inserter.oracle
    for position, there in enumerate(packing.bins):
        for index, rate in there.members:
            item = oracle.items[index]
            others = [member for member in there.members if member[0] != index]
            for kind in item.kinds:
                alone = oracle.make(kind, [(index, rate)])
                if others:
                    kept = oracle.make(there.kind, others, there.fixed)
                    yield _Change({position: kept}, (alone,))
                elif kind.gpus > there.kind.gpus:
                    yield _Change({position: alone})
                if replicas_of(packing, item) < item.llm.max_replicas:
                    halved = oracle.make(there.kind, [*others, (index, rate / 2)], there.fixed)
                    yield _Change({position: halved}, (oracle.make(kind, [(index, rate / 2)]),))


def _moved(packing: Packing, source: int, target: int, inserter: Inserter) -> Iterator[_Change]:
    """A member of `source`, or half its rate, in `target`; a bin that is left empty goes."""
    there, other = packing.bins[source], packing.bins[target]
    for kept, grown in _handed(packing, there.members, there, other, inserter):
        yield _Change({source: kept, target: grown})


def _passed_on(
    packing: Packing, first: _Change, through: int, inserter: Inserter
) -> Iterator[_Change]:
    """`first`, and what was in the bin it goes `through`, or half its rate, in a third one."""
    middle = first.replaced[through]
    assert middle is not None
    stayed = [member for member in packing.bins[through].members if member in middle.members]
    for at, known in enumerate(packing.bins):
        there = first.replaced.get(at, known)
        if at == through or there is None:
            continue
        for kept, grown in _handed(packing, stayed, middle, there, inserter):
            yield _Change({**first.replaced, through: kept, at: grown})


def _handed(
    packing: Packing,
    members: Iterable[tuple[int, float]],
    giver: Bin,
    taker: Bin,
    inserter: Inserter,
) -> Iterator[tuple[Bin | None, Bin]]:
    """What both bins are when `taker` gets one of `members` of the `giver`, or half its rate."""
    oracle = inserter.oracle
    for index, rate in members:
        item = oracle.items[index]
        holds = taker.holds(index)
        if not holds and not oracle.may_join(taker, item):
            continue
        others = [member for member in giver.members if member[0] != index]
        kept = oracle.make(giver.kind, others, giver.fixed) if others else None
        yield kept, oracle.joined(taker, item, rate)
        if holds or replicas_of(packing, item) < item.llm.max_replicas:
            halved = oracle.make(giver.kind, [*others, (index, rate / 2)], giver.fixed)
            yield halved, oracle.joined(taker, item, rate / 2)
