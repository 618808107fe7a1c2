"""A packing from scratch: the fewest GPUs that meet all demand; without that, the best service.

All demand is packed as if every GPU of the nodes might be used, so a cap on GPUs changes nothing
about a plan that stays below it. Then one GPU fewer is tried for as long as that still serves all;
where the cap, or the cluster, is too small for all demand, floors are climbed (`scarcity`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from mux_core.planners.capacity import Capacity
from mux_core.planners.packing import Item, Oracle
from mux_core.planners.scarcity import CLIMBS, Ladder, Service, service_of
from mux_core.planners.search import Budget, Goal, Inserter, Packing, PackingSearch
from mux_core.planners.whole_groups import whole_group_packing

SEED = 20_240_402
HOPELESS = 0.05
"""Part of demand unserved after the first packings beyond which no search will serve it all."""
MOST_ORDERS = 200
"""Items up to which several orders of insertion are tried."""
MOST_SQUEEZED = 48
"""GPUs up to which one GPU fewer is tried."""


@dataclass(slots=True)
class Fresh:
    """Packs `items` onto `capacity`, which is `nodes` with a cap. `base` may not move."""

    oracle: Oracle
    capacity: Capacity
    nodes: Capacity
    items: Sequence[Item]
    base: Packing
    pinned: frozenset[int]
    steps: int | None = None

    def packings(self) -> Iterator[Packing]:
        """One per step, each legal and none worse than the one before."""
        shown: Packing | None = None
        found = self.base
        for found in self._meeting_demand():
            if self.capacity.holds(found.counts):
                shown = found
            yield shown or (shown := self._only_best_paying())
        if self._service(found).all_met and self.capacity.holds(found.counts):
            yield from self._squeezed(found)
            return
        for packing in self._ladder(self.capacity).climb():
            if shown is None or self._service(packing) > self._service(shown):
                shown = packing
            yield shown
        if shown is not None:
            yield from self._ahead_of_whole_groups(shown)

    def _ahead_of_whole_groups(self, shown: Packing) -> Iterator[Packing]:
        """On large clusters, what is behind whole groups per replica in a figure gives way.

        On small ones the climbs alone decide, so that one more GPU never lowers their worth.
        """
        held = any(item.llm.priority or not item.llm.movable or item.llm.min_replicas > 1
                   for item in self.items)  # fmt: skip
        if held or self.capacity.limit <= CLIMBS:
            return
        whole = whole_group_packing(Inserter(self.oracle, self.capacity), list(self.items))
        if whole is None or self._service(shown).is_ahead_of(self._service(whole)):
            return
        yield from self._ladder(self.capacity).ahead_of(whole)

    def floors(self) -> Iterator[tuple[float, Packing]]:
        """(floor on the worst ratio, the packing it leads to), the highest first."""
        return self._ladder(self.capacity).floors()

    def _meeting_demand(self) -> Iterator[Packing]:
        rates = tuple(item.rate for item in self.items)
        priorities = tuple(item.llm.priority for item in self.items)
        goal = Goal(rates=rates, priorities=priorities, targets=rates)
        inserter = Inserter(self.oracle, self.nodes)
        search = PackingSearch(inserter, self.items, goal, Random(SEED))
        best = search.construct(3 if len(self.items) <= MOST_ORDERS else 1, self.base)
        yield best
        if self._service(best).goodput >= 1 - HOPELESS:
            yield from search.improve(best, self._budget(), self.pinned)

    def _squeezed(self, met: Packing) -> Iterator[Packing]:
        """With one GPU fewer, as long as that serves all."""
        if met.gpus > MOST_SQUEEZED:
            return
        while met.gpus > 1:
            tried = met
            ladder = self._ladder(replace(self.nodes, limit=met.gpus - 1))
            for found in ladder.climb(most=1):
                tried = found
                yield met
            if not self._service(tried).all_met:
                return
            met = tried
            yield met

    def _only_best_paying(self) -> Packing:
        return next(self._ladder(self.capacity).climb())

    def _ladder(self, capacity: Capacity) -> Ladder:
        return Ladder(Inserter(self.oracle, capacity), self.items, self.base, self.pinned)

    def _service(self, packing: Packing) -> Service:
        return service_of(packing, self.items)

    def _budget(self) -> Budget:
        steps = self.steps
        if steps is None:
            steps = 200 + 6 * min(len(self.items), MOST_ORDERS)
        return Budget(steps, 20_000 + 50 * len(self.items))
