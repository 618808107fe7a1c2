"""The additive answer: what runs stays as it is, and whoever has no place gets one.

For plans that are carried out (`policy.best_effort`). An estimate may be wrong, and a running
engine must not pay for that: members stay even where their unit is said to be too full, and a model
that no group is said to carry within its service level is placed by memory alone.
"""

from collections.abc import Mapping
from dataclasses import replace

from mux_core.placement import Placement, Unit
from mux_core.planners.assembly import kind_of
from mux_core.planners.inserting import Inserter, Packing, empty_packing
from mux_core.planners.keeping import insert_rest, scaled_rates
from mux_core.planners.packing import Bin, Item, Oracle
from mux_core.planning import PlacementProblem
from mux_core.units import ModelName, UnitId

PARTS = 8
"""Of a member that overfills its unit, the largest of so many equal parts that fits is carried."""
LEAST_PERCENT = 10
"""A share that a newcomer must find free where shares of running engines cannot change."""
Surplus = frozenset[tuple[UnitId, ModelName]]


def surplus(problem: PlacementProblem) -> Surplus:
    """Replicas that run beyond `max_replicas`: those of the highest numbers."""
    most = {llm.name: llm.max_replicas for llm in problem.llms}
    running: dict[ModelName, list[tuple[int, UnitId]]] = {}
    for unit, member in problem.current.members():
        running.setdefault(member.model, []).append((member.replica, unit.id))
    return frozenset(
        (unit, model)
        for model, places in running.items()
        for _, unit in sorted(places)[most.get(model, 0) :]
    )


def full_units(problem: PlacementProblem) -> frozenset[int]:
    """Indices of current units that nobody can join without a restart of who is there."""
    live = live_nodes(problem)
    return frozenset(at for at, unit in enumerate(problem.current.units)
                     if unit.group.node not in live and _is_full(unit))  # fmt: skip


def live_nodes(problem: PlacementProblem) -> frozenset[str]:
    """Nodes on which an engine's share changes while it runs: on a GPU it is fixed at its start."""
    return frozenset(node.name for node in problem.nodes if node.gpu == "cpu")


def _is_full(unit: Unit) -> bool:
    return sum(member.share.decode for member in unit.members) > 100 - LEAST_PERCENT


def held_packing(problem: PlacementProblem, oracle: Oracle, inserter: Inserter) -> Packing:
    """Every running replica stays; then what is missing, where the estimate says that it fits."""
    items = {item.llm.name: item for item in oracle.items}
    wanted = within_limits(problem)
    rates = scaled_rates(wanted, items)
    packing = empty_packing()
    left = {item.index: item.rate for item in oracle.items}
    for position, unit in enumerate(wanted.current.units):
        kind = kind_of(problem, unit.group)
        members = [(items[m.model].index, rates[unit.id, m.model])
                   for m in unit.members if m.model in items]  # fmt: skip
        if kind is None or not members:
            continue
        there = _carried(oracle.make(kind, members, position), oracle)
        packing.bins.append(there)
        packing.counts[kind] = packing.counts.get(kind, 0) + 1
        for index, rate in there.members:
            left[index] -= rate
    insert_rest(packing, left, oracle, inserter)
    return packing


def breaks_rules(packing: Packing, oracle: Oracle) -> bool:
    """Does a unit hold what its models' specs no longer allow there, but elsewhere?"""
    for there in packing.bins:
        grown = oracle.make(there.kind, (), there.fixed)
        for index, rate in there.members:
            item = oracle.items[index]
            if item.kinds and not oracle.allows(grown, item):
                return True
            grown = oracle.joined(grown, item, rate)
    return False


def within_limits(problem: PlacementProblem) -> PlacementProblem:
    """`problem` without surplus replicas; its units keep their places, also empty ones."""
    gone = surplus(problem)
    units = tuple(
        unit.with_members(tuple(m for m in unit.members if (unit.id, m.model) not in gone))
        for unit in problem.current.units
    )
    return replace(problem, current=Placement(units=units))


def _carried(there: Bin, oracle: Oracle) -> Bin:
    """What an overfull unit carries: its busiest member gives way first.

    A member that is refused even alone was placed by memory; it says nothing against the others.
    """
    solo = {index: oracle.solo(oracle.items[index], there.kind) for index, _ in there.members}

    def load(member: tuple[int, float]) -> float:
        index, rate = member
        return rate / solo[index]

    members = dict(there.members)
    judged = [member for member in there.members if solo[member[0]]]
    for index, rate in sorted(judged, key=load, reverse=True):
        for part in range(PARTS, 0, -1):
            members[index] = rate * part / PARTS
            if oracle.fits(there.kind, [(i, members[i]) for i, _ in judged]):
                return oracle.make(there.kind, members.items(), there.fixed)
    return oracle.make(there.kind, members.items(), there.fixed)


def everyone_placed(packing: Packing, problem: PlacementProblem, inserter: Inserter) -> Packing:
    """`packing` with the least replicas of everyone, as far as memory goes, and all demand sent."""
    result = packing.copy()
    items = inserter.oracle.items
    places = _places(result, len(items))
    for item in sorted(items, key=lambda item: (-item.llm.priority, item.index)):
        _force(result, item, places[item.index], inserter)
    before = _rates_now(problem)
    for item in items:
        _send(result, item, places[item.index], before, inserter.oracle)
    return result


Places = dict[int, float]
"""Rates of one LLM by the position of the bin."""


def _places(packing: Packing, items: int) -> list[Places]:
    """By item."""
    found: list[Places] = [{} for _ in range(items)]
    for at, there in enumerate(packing.bins):
        for index, rate in there.members:
            found[index][at] = rate
    return found


def _force(packing: Packing, item: Item, places: Places, inserter: Inserter) -> None:
    """Replicas that are missing: in the least loaded bin that may hold them, else in a new one."""
    short = packing.unserved.get(item.index, 0.0)
    missing = item.llm.min_replicas - len(places)
    for _ in range(missing):
        rate = max(short / missing, item.rate / item.llm.min_replicas * 1e-3)
        allowed = [at for at, there in enumerate(packing.bins)
                   if inserter.oracle.allows(there, item)]  # fmt: skip
        if allowed:
            at = min(allowed, key=lambda at: (packing.bins[at].load, at))
            packing.bins[at] = inserter.oracle.joined(packing.bins[at], item, rate)
        elif inserter.open_smallest(packing, item, rate):
            at = len(packing.bins) - 1
        else:
            return
        places[at] = rate


def _send(
    packing: Packing,
    item: Item,
    places: Places,
    before: Mapping[tuple[ModelName, int], float],
    oracle: Oracle,
) -> None:
    """All of a model's demand goes to the replicas it has.

    Where neither has changed it is divided as before, so that a plan from its own placement is
    empty, also where more is asked than anything carries.
    """
    total = sum(places.values())
    if total <= 0:
        return
    wanted = {at: float(f"{rate * item.rate / total:.12g}") for at, rate in places.items()}
    had = {at: before.get((item.name, packing.bins[at].fixed), 0.0) for at in places}
    same = abs(sum(had.values()) - item.rate) <= 1e-5 * item.rate
    if same and all(had.values()):
        wanted = had
    for at, rate in wanted.items():
        if rate != places[at]:
            there = packing.bins[at]
            members = [(i, rate if i == item.index else r) for i, r in there.members]
            packing.bins[at] = oracle.make(there.kind, members, there.fixed)


def _rates_now(problem: PlacementProblem) -> dict[tuple[ModelName, int], float]:
    return {
        (member.model, position): member.rate
        for position, unit in enumerate(problem.current.units)
        for member in unit.members
    }
