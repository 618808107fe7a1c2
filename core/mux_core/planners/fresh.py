"""A packing from scratch: the fewest GPUs that meet all demand; without that, the best service.

All demand is packed as if every GPU of the nodes might be used, so a cap on GPUs changes nothing
about a plan that stays below it. Then one GPU fewer is tried for as long as that still serves all;
where the cap, or the cluster, is too small for all demand, floors are climbed (`scarcity`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mux_core.planners.capacity import Capacity
from mux_core.planners.inserting import Inserter, Packing
from mux_core.planners.packing import Item, Oracle
from mux_core.planners.scarcity import CLIMBS, Ladder, Service, service_of
from mux_core.planners.search import Budget, PackingSearch
from mux_core.planners.whole_groups import whole_group_packing

SEED = 20_240_402
HOPELESS = 0.05
"""Part of demand unserved after the first packings beyond which no search will serve it all."""
MOST_ORDERS = 200
"""Items up to which several orders of insertion are tried."""
MOST_SQUEEZED = 48
"""GPUs up to which one GPU fewer is tried."""
SQUEEZE = Budget(200, 20_000)
"""Work on a packing that has lost a group."""


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
        climb = self._ladder(self.capacity).climb()
        shown: Packing | None = None
        for found in self._meeting_demand():
            if self.capacity.holds(found.counts):
                shown = found
            yield shown or (shown := next(climb))
        assert shown is not None
        if self._service(shown).all_met:
            return
        for packing in climb:
            if self._service(packing) > self._service(shown):
                shown = packing
            yield shown
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
        """All demand on fewer and fewer GPUs, as far as the nodes serve it all."""
        search = self._search(self.nodes)
        best = search.construct(3 if len(self.items) <= MOST_ORDERS else 1, self.base)
        yield best
        if self._service(best).goodput >= 1 - HOPELESS:
            for found in search.improve(best, self._budget(), self.pinned):
                best = found
                yield best
        if self._service(best).all_met:
            yield from self._squeezed(best)

    def _squeezed(self, met: Packing) -> Iterator[Packing]:
        """With one GPU fewer, as long as that serves all."""
        while 1 < met.gpus <= MOST_SQUEEZED:
            for tried in self._tried_on(replace(self.nodes, limit=met.gpus - 1), met):
                yield met
                if self._service(tried).all_met:
                    break
            else:
                return
            met = tried
            yield met

    def _tried_on(self, capacity: Capacity, met: Packing) -> Iterator[Packing]:
        """Attempts to serve all on less than `met` takes."""
        search = self._search(capacity)
        free = [at for at, there in enumerate(met.bins) if there.fixed not in self.pinned]
        loosest = set(sorted(free, key=lambda at: (met.bins[at].load, at))[:1])
        yield from search.improve(search.without(met, loosest), SQUEEZE, self.pinned)
        yield from self._ladder(capacity).highest()

    def _search(self, capacity: Capacity) -> PackingSearch:
        return PackingSearch.for_demand(Inserter(self.oracle, capacity), self.items, SEED)

    def _ladder(self, capacity: Capacity) -> Ladder:
        return Ladder(Inserter(self.oracle, capacity), self.items, self.base, self.pinned)

    def _service(self, packing: Packing) -> Service:
        return service_of(packing, self.items)

    def _budget(self) -> Budget:
        steps = self.steps
        if steps is None:
            steps = 200 + 6 * min(len(self.items), MOST_ORDERS)
        return Budget(steps, 20_000 + 50 * len(self.items))
