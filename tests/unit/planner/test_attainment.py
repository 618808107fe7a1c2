"""Steps of the attainment objective, on packings made by hand."""

from dataclasses import replace
from math import inf

import pytest

from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.unit import Ask, GroupKind
from mux_core.llm import Slo
from mux_core.planners import attainment
from mux_core.planners.attainment import (
    Spending,
    nearness,
    spend_spare_gpus,
    with_all_arrivals,
)
from mux_core.planners.capacity import capacity_of
from mux_core.planners.inserting import Inserter, Packing
from mux_core.planners.packing import Oracle
from mux_core.planning import PlanningPolicy
from mux_core.units import GIB, Bytes
from planner_builders import a_problem, an_llm, nodes

ONE = GroupKind(gpus=1, gpu="a100-80gb", memory=Bytes(80 * GIB))
TIGHT = Slo(ttft_s=0.04, tpot_s=0.025)


def spending_of(rates: dict[str, float], *, gpus: int) -> Spending:
    llms = tuple(an_llm(name, rate=rate, slo=TIGHT) for name, rate in rates.items())
    problem = a_problem(llms, cluster=nodes(1, gpus), policy=PlanningPolicy(group_sizes=(1,)))
    oracle = Oracle(QueueingUnits(enforce_slo=False), problem.policy)
    capacity = capacity_of(problem.nodes, (1,), limit=gpus)
    for llm in llms:
        oracle.add(llm, llm.demand.rate, capacity.kinds)
    return Spending(Inserter(oracle, capacity))


def packed(spending: Spending, *bins: dict[int, float]) -> Packing:
    made = [spending.inserter.oracle.make(ONE, members.items()) for members in bins]
    return Packing(made, {}, {ONE: len(made)})


def rates_of(packing: Packing) -> dict[int, float]:
    found: dict[int, float] = {}
    for there in packing.bins:
        for index, rate in there.members:
            found[index] = found.get(index, 0.0) + rate
    return found


def test_without_a_spare_gpu_rate_moves_from_the_group_that_misses_to_one_that_does_not():
    spending = spending_of({"a": 6.0, "b": 3.0, "c": 0.2}, gpus=2)
    start = packed(spending, {0: 6.0, 1: 3.0}, {2: 0.2})
    *_, last = spend_spare_gpus(start, spending)
    assert last.gpus == 2
    assert spending.attained(last) > spending.attained(start)
    assert rates_of(last) == rates_of(start)


def test_a_spare_gpu_goes_to_who_misses_most():
    spending = spending_of({"a": 8.0, "b": 0.5}, gpus=3)
    start = packed(spending, {0: 8.0}, {1: 0.5})
    *_, last = spend_spare_gpus(start, spending)
    assert last.gpus == 3
    assert sum(there.holds(0) for there in last.bins) >= 2


def test_a_group_passes_a_cold_llm_on_so_that_a_hot_one_gets_its_gpu():
    spending = spending_of({"hot": 4.0, "warm": 1.0, "cold": 0.5}, gpus=3)
    start = packed(spending, {0: 4.0}, {1: 1.0}, {2: 0.5})
    *_, last = spend_spare_gpus(start, spending)
    members = sorted(sorted(there.members) for there in last.bins)
    assert members == [[(0, 2.0)], [(0, 2.0)], [(1, 1.0), (2, 0.5)]]


@pytest.mark.parametrize(("rates", "counts_less"), [((3.0, 3.0), False), ((6.0, 4.0), True)])
def test_who_waits_long_for_its_neighbours_counts_less(rates, counts_less, monkeypatch):
    met = []
    for most in (attainment.MOST_STRETCH, inf):
        monkeypatch.setattr(attainment, "MOST_STRETCH", most)
        spending = spending_of(dict(zip("ab", rates, strict=True)), gpus=1)
        (there,) = packed(spending, dict(enumerate(rates))).bins
        met.append(spending.met(there))
    assert (met[0] < 0.7 * met[1]) == counts_less


def test_a_group_on_the_edge_counts_less_than_one_with_room():
    spending = spending_of({"a": 1.0}, gpus=1)
    llm = spending.inserter.oracle.items[0].llm
    (found,) = spending.inserter.oracle.estimator.outcome(ONE, [Ask(llm=llm, rate=1.0)]).members
    scores = [nearness(TIGHT, replace(found, utilisation=use), 20.0) for use in (0.5, 0.9, 1.0)]
    assert scores[0] > 1.1 * scores[1] > scores[2] == 0


def test_nothing_is_spent_where_nothing_gains():
    spending = spending_of({"a": 0.1}, gpus=1)
    start = packed(spending, {0: 0.1})
    assert list(spend_spare_gpus(start, spending)) == [start]


def test_what_is_planned_to_stay_unserved_arrives_at_the_replicas_there_are():
    spending = spending_of({"a": 8.0, "b": 4.0}, gpus=2)
    start = packed(spending, {0: 1.0, 1: 4.0}, {0: 3.0})
    start.unserved[0] = 4.0
    found = with_all_arrivals(start, spending.inserter.oracle)
    assert [dict(there.members) for there in found.bins] == [{0: 2.0, 1: 4.0}, {0: 6.0}]


def test_too_much_load_for_all_is_not_left_to_one_llm():
    spending = spending_of({"a": 9.0, "b": 9.0, "c": 9.0}, gpus=2)
    start = packed(spending, {0: 9.0, 1: 4.5}, {1: 4.5, 2: 9.0})
    least = min(map(spending.worst, start.bins))
    floors = {}
    for part in (0.0, 0.9):
        free = replace(spending, floor=part * least)
        *_, last = spend_spare_gpus(start, free)
        floors[part] = min(map(free.worst, last.bins))
    assert floors[0.0] < 0.9 * least <= floors[0.9]
