"""The bound against exhaustive search on small cases: never beyond what some placement reaches."""

from itertools import product
from math import inf
from random import Random

import pytest

from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.reference import ReferenceUnits
from mux_core.estimator.unit import Ask
from mux_core.planners.bound import bound_of
from mux_core.planners.capacity import capacity_of
from mux_core.planners.default import DefaultPlanner
from mux_core.planning import PlanningPolicy, best_plan
from planner_builders import a_problem, an_llm, nodes

PARTS = 3
"""Thirds of a demand that the exhaustive search places."""
GPUS = 4


def fewest_gpus(estimator, llms):
    """(thirds served by LLM) -> fewest GPUs, over all multisets of units that fit."""
    kinds = capacity_of(nodes(1, GPUS), (1, 2, 4), limit=None).kinds
    vectors = list(product(range(PARTS + 1), repeat=len(llms)))
    units = [(kind.gpus, v) for kind in kinds for v in vectors if carries(estimator, kind, llms, v)]
    least = dict.fromkeys(vectors, inf)
    least[(0,) * len(llms)] = 0
    for gpus in range(GPUS + 1):
        for vector in [v for v in vectors if least[v] == gpus]:
            for size, unit in units:
                after = tuple(min(PARTS, a + b) for a, b in zip(vector, unit, strict=True))
                least[after] = min(least[after], gpus + size)
    return least


def carries(estimator, kind, llms, vector):
    asked = [(llm, part) for llm, part in zip(llms, vector, strict=True) if part]
    if not asked or any(kind not in estimator.sizes(llm, [kind]) for llm, _ in asked):
        return False
    if sum(estimator.footprint(llm, kind) for llm, _ in asked) > 1:
        return False
    asks = [Ask(llm=llm, rate=llm.demand.rate * part / PARTS) for llm, part in asked]
    return estimator.carries(kind, asks)


def small_case(seed):
    draw = Random(seed)
    sizes = draw.choices(["llama-7b", "llama-13b", "llama-30b"], [4, 2, 1], k=3)
    return tuple(an_llm(f"m{i}", size, 10 ** draw.uniform(-1, 1.2)) for i, size in enumerate(sizes))


@pytest.mark.parametrize("estimator", [ReferenceUnits, QueueingUnits], ids=["muxserve", "default"])
@pytest.mark.parametrize("seed", range(6))
def test_no_placement_beats_the_bound(seed, estimator):
    llms = small_case(seed)
    problem = a_problem(llms, cluster=nodes(1, GPUS), policy=PlanningPolicy())
    plan = best_plan(DefaultPlanner(estimator=estimator()), problem, max_steps=100_000)
    bound = bound_of(plan, problem, estimator())
    least = fewest_gpus(estimator(), llms)
    all_met = least[(PARTS,) * len(llms)]
    if all_met <= GPUS:
        assert bound.gpus <= all_met
        assert plan.prediction.gpus_used <= all_met
    if plan.prediction.worst_ratio == 1:
        assert bound.gpus <= plan.prediction.gpus_used
    assert bound.goodput >= plan.prediction.goodput - 1e-6
    floor = plan.prediction.worst_ratio
    best = max((sum(llm.demand.rate * part / PARTS for llm, part in zip(llms, v, strict=True))
                for v, gpus in least.items()
                if gpus <= GPUS and min(v) / PARTS >= floor), default=0.0)  # fmt: skip
    assert bound.goodput >= best - 1e-6
