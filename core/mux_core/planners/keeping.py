"""The current placement as a packing: what can stay as it is, with today's rates."""

from collections.abc import Mapping
from dataclasses import replace

from mux_core.placement import Unit
from mux_core.planners.assembly import kind_of
from mux_core.planners.inserting import Inserter, Packing, empty_packing
from mux_core.planners.packing import Bin, Item, Oracle
from mux_core.planning import PlacementProblem
from mux_core.units import ModelName, UnitId

SAME = 1e-9
"""Relative difference of rates that is rounding, not a change."""


def kept_packing(
    problem: PlacementProblem, oracle: Oracle, inserter: Inserter
) -> tuple[Packing, bool]:
    """(packing, did every member stay): current units first, then what they cannot carry."""
    items = {item.llm.name: item for item in oracle.items}
    wanted = scaled_rates(problem, items)
    packing = empty_packing()
    whole = True
    left = {item.index: item.rate for item in oracle.items}
    for position, unit in enumerate(problem.current.units):
        there = _kept_bin(problem, unit, position, items, wanted, oracle)
        if there is None or len(there.members) < len(unit.members):
            whole = False
        if there is None:
            continue
        packing.bins.append(there)
        packing.counts[there.kind] = packing.counts.get(there.kind, 0) + 1
        for index, rate in there.members:
            left[index] -= rate
    insert_rest(packing, left, oracle, inserter)
    return packing, whole


def pinned_packing(problem: PlacementProblem, oracle: Oracle) -> Packing:
    """Only the units in which something may not be moved, with those members alone."""
    items = {item.llm.name: item for item in oracle.items}
    wanted = scaled_rates(problem, items)
    packing = empty_packing()
    for position, unit in enumerate(problem.current.units):
        fixed = tuple(
            member
            for member in unit.members
            if (item := items.get(member.model)) is not None and not item.llm.movable
        )
        if fixed:
            held = replace(unit, members=fixed)
            there = _kept_bin(problem, held, position, items, wanted, oracle)
            if there is not None:
                packing.bins.append(there)
                packing.counts[there.kind] = packing.counts.get(there.kind, 0) + 1
    return packing


def scaled_rates(
    problem: PlacementProblem, items: Mapping[ModelName, Item]
) -> dict[tuple[UnitId, ModelName], float]:
    """Today's demand divided over the current replicas as it was; never more than they had.

    Growth beyond that is inserted afterwards, where it is checked against what fits.
    """
    totals: dict[ModelName, float] = {}
    counts: dict[ModelName, int] = {}
    for _, member in problem.current.members():
        totals[member.model] = totals.get(member.model, 0.0) + member.rate
        counts[member.model] = counts.get(member.model, 0) + 1
    rates = {}
    for unit, member in problem.current.members():
        item = items.get(member.model)
        if item is None:
            continue
        total = totals[member.model]
        if total <= 0:
            rates[unit.id, member.model] = item.rate / counts[member.model]
        elif total > item.rate * (1 + SAME):
            rates[unit.id, member.model] = item.rate * member.rate / total
        else:
            rates[unit.id, member.model] = member.rate
    return rates


def _kept_bin(
    problem: PlacementProblem,
    unit: Unit,
    position: int,
    items: Mapping[ModelName, Item],
    wanted: Mapping[tuple[UnitId, ModelName], float],
    oracle: Oracle,
) -> Bin | None:
    """The unit with as many of its members as the rules and the estimate still allow."""
    kind = kind_of(problem, unit.group)
    if kind is None:
        return None
    there = oracle.make(kind, (), position)
    for member in unit.members:
        item = items.get(member.model)
        if item is not None and oracle.may_join(there, item):
            there = oracle.joined(there, item, wanted[unit.id, member.model])
    while there.members and not oracle.fits(kind, there.members):
        least = min(there.members, key=lambda member: _rank(oracle, member))
        there = oracle.make(kind, [m for m in there.members if m != least], position)
    return there if there.members else None


def _rank(oracle: Oracle, member: tuple[int, float]) -> tuple[bool, int, float, int]:
    """Who leaves an overfull unit first: movable, of low priority, with little to do."""
    llm = oracle.items[member[0]].llm
    return (not llm.movable, llm.priority, member[1], member[0])


def insert_rest(
    packing: Packing, left: Mapping[int, float], oracle: Oracle, inserter: Inserter
) -> None:
    order = sorted(left, key=lambda i: (-oracle.items[i].llm.priority, -left[i], i))
    for index in order:
        item = oracle.items[index]
        if left[index] > SAME * item.rate:
            inserter.insert(packing, item, left[index], extend=True)
