"""Climbs from floors: what is found for some GPUs is on the way to what is found for more."""

from mux_core.estimator.reference import ReferenceUnits
from mux_core.planners.capacity import capacity_of
from mux_core.planners.inserting import Inserter, empty_packing
from mux_core.planners.packing import Oracle
from mux_core.planners.scarcity import Ladder
from mux_core.planning import PlanningPolicy
from planner_builders import nodes, synthetic


def ladder(gpus):
    capacity = capacity_of(nodes(), (1, 2, 4, 8), limit=gpus)
    oracle = Oracle(ReferenceUnits(), PlanningPolicy())
    for llm in synthetic(0.9, 1.0):
        oracle.add(llm, llm.demand.rate, capacity.kinds)
    return Ladder(Inserter(oracle, capacity), oracle.items, empty_packing(), frozenset())


def test_a_climb_does_not_know_where_it_ends():
    shorter, longer = list(ladder(23).highest()), list(ladder(25).highest())
    assert shorter
    assert longer[: len(shorter)] == shorter
