"""Our strategy: fewer GPUs than first-fit, constraints honoured, steady and explained."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from mux_core.estimator.reference import ReferenceUnits
from mux_core.llm import SharingPolicy, Slo
from mux_core.planners.default import DefaultPlanner
from mux_core.planning import Objective, PlanningPolicy, PlanReason, best_plan
from mux_core.units import Percent
from planner_builders import a_problem, an_llm, check_legal, nodes, synthetic

LONG = 100_000


def plan_of(problem, estimator=None):
    planner = DefaultPlanner(estimator=estimator or ReferenceUnits())
    return best_plan(planner, problem, max_steps=LONG)


def test_high_priority_is_served_first():
    llms = (an_llm("cheap", rate=30.0), an_llm("dear", "llama-13b", rate=10.0, priority=5))
    plan = plan_of(a_problem(llms, cluster=nodes(1, 3)))
    assert plan.prediction.models["dear"].ratio > plan.prediction.models["cheap"].ratio


def test_tenants_and_exclusive_llms_do_not_share():
    llms = (
        an_llm("a", rate=0.1, sharing=SharingPolicy(tenant_group="x")),
        an_llm("b", rate=0.1, sharing=SharingPolicy(tenant_group="y")),
        an_llm("c", rate=0.1, sharing=SharingPolicy(tenant_group="x", exclusive=True)),
        an_llm("d", rate=0.1, sharing=SharingPolicy(tenant_group="x")),
    )
    problem = a_problem(llms)
    plan = plan_of(problem)
    check_legal(problem, plan)
    assert plan.prediction.gpus_used == 3


def test_replica_and_degree_and_share_bounds_hold():
    llms = (
        an_llm("a", rate=25.0, max_replicas=2),
        an_llm("b", rate=0.5, min_replicas=3, allowed_tensor=(2,)),
        an_llm("c", rate=0.5, sharing=SharingPolicy(min_percent=Percent(40))),
    )
    problem = a_problem(llms)
    plan = plan_of(problem)
    check_legal(problem, plan)
    models = plan.prediction.models
    assert models["a"].replicas == 2
    assert models["b"].replicas == 3


def test_without_sharing_everyone_is_alone():
    problem = a_problem(synthetic(2.1, 0.5), policy=PlanningPolicy(allow_sharing=False))
    plan = plan_of(problem)
    assert all(len(unit.members) == 1 for unit in plan.proposed.units)


def test_a_model_that_fits_nowhere_says_so():
    problem = a_problem((an_llm("big", "llama-65b"),), cluster=nodes(1, 2))
    plan = plan_of(problem)
    assert plan.unplaced[0].reason is PlanReason.DOES_NOT_FIT
    assert "big" in plan.unplaced[0].message


@pytest.mark.parametrize("estimator", [None, ReferenceUnits()], ids=["default", "muxserve"])
@pytest.mark.parametrize("gpus", [8, 3], ids=["enough", "too-few"])
def test_planning_from_its_own_placement_changes_nothing(estimator, gpus):
    problem = a_problem(synthetic(2.1, 0.25)[:10], cluster=nodes(1, gpus))
    first = best_plan(DefaultPlanner(estimator=estimator), problem, max_steps=LONG)
    again = replace(problem, current=first.proposed, llms=problem.llms[::-1])
    assert best_plan(DefaultPlanner(estimator=estimator), again, max_steps=LONG).steps == ()


def test_spare_gpus_buy_attainment_and_not_sharing_wins_where_it_is_better():
    tight = Slo(ttft_s=0.3, tpot_s=0.016, objective=0.9)
    llms = tuple(an_llm(f"m{i}", rate=2.0, slo=tight) for i in range(3))
    policy = PlanningPolicy(objective=Objective.ATTAINMENT, gpu_limit=8)
    many = best_plan(DefaultPlanner(), a_problem(llms, policy=policy), max_steps=LONG)
    few = best_plan(DefaultPlanner(), a_problem(
        llms, policy=replace(policy, gpu_limit=1)), max_steps=LONG)  # fmt: skip
    assert many.prediction.attainment > few.prediction.attainment
    assert all(len(unit.members) == 1 for unit in many.proposed.units)


def test_equal_problems_give_equal_plans_in_other_processes():
    program = (
        "from planner_builders import a_problem, synthetic;"
        "from mux_core.planners.default import DefaultPlanner;"
        "from mux_core.planning import best_plan;"
        "print(best_plan(DefaultPlanner(), a_problem(synthetic(2.1, 0.5)[:8])).proposed)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "tests"},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
