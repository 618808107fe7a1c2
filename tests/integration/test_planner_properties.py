"""Whatever is asked for, a plan is legal, and more GPUs never make it worse."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mux_core.estimator.reference import ReferenceUnits
from mux_core.llm import SharingPolicy
from mux_core.planners.default import DefaultPlanner
from mux_core.planning import PlanningPolicy, best_plan
from mux_core.units import GIB, Bytes, Percent
from planner_builders import a_problem, an_llm, chatlmsys, check_legal, nodes

LONG = 100_000
PER_GPU = {"llama-7b": 10.0, "llama-13b": 6.0, "llama-30b": 2.0, "llama-65b": 0.9}
"""About what one GPU serves of each, in requests/s."""
SLOW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def llms(draw):
    count = draw(st.integers(1, 6))
    return tuple(
        an_llm(
            f"m{index}",
            draw(st.sampled_from(["llama-7b", "llama-13b", "llama-30b"])),
            draw(st.floats(0.01, 12.0)),
            sharing=SharingPolicy(
                exclusive=draw(st.booleans()) and index == 0,
                tenant_group=draw(st.sampled_from(["", "", "x"])),
                min_percent=draw(st.sampled_from([None, None, Percent(30)])),
                max_percent=draw(st.sampled_from([Percent(100), Percent(60)])),
                kv_request=draw(st.sampled_from([Bytes(0), Bytes(4 * GIB)])),
            ),
            priority=draw(st.integers(0, 1)),
            max_replicas=draw(st.sampled_from([1, 3, 99])),
        )
        for index in range(count)
    )


estimators = st.sampled_from([ReferenceUnits, lambda: None])
limits = st.sampled_from([None, 1])


@SLOW
@given(asked=llms(), gpus=st.integers(1, 8), estimator=estimators, limit=limits)
def test_every_plan_is_legal(asked, gpus, estimator, limit):
    problem = a_problem(
        asked, cluster=nodes(1, gpus), policy=PlanningPolicy(max_tensor_members=limit)
    )
    check_legal(problem, best_plan(DefaultPlanner(estimator=estimator()), problem, max_steps=LONG))


@SLOW
@given(asked=llms(), estimator=estimators, data=st.data())
def test_the_order_of_the_input_changes_nothing(asked, estimator, data):
    shuffled = tuple(data.draw(st.permutations(asked)))
    one, other = (
        best_plan(DefaultPlanner(estimator=estimator()), a_problem(order, cluster=nodes(1)),
                  max_steps=LONG)
        for order in (asked, shuffled)
    )  # fmt: skip
    assert one.proposed == other.proposed


@SLOW
@given(asked=llms(), gpus=st.integers(1, 7), estimator=estimators)
def test_one_more_gpu_never_lowers_the_objective(asked, gpus, estimator):
    few, more = (
        objective(asked, a_problem(asked, cluster=nodes(1), policy=PlanningPolicy(gpu_limit=limit)),
                  estimator())
        for limit in (gpus, gpus + 1)
    )  # fmt: skip
    assert more >= few


def scarce(seed):
    """More than 32 GPUs carry, and served worse by one GPU more where a search knows the end.

    So it was with climbs that stop at the first floor that fits, or are polished near their end.
    """
    draw = Random(seed)
    sizes = draw.choices(list(PER_GPU), [4, 3, 2, 1], k=5)
    rates = [10 ** draw.uniform(-1, 1) for _ in sizes]
    needed = sum(rate / PER_GPU[size] for size, rate in zip(sizes, rates, strict=True))
    over = draw.uniform(1.1, 2.5) * 32 / needed
    return tuple(an_llm(f"m{i}", size, rate * over)
                 for i, (size, rate) in enumerate(zip(sizes, rates, strict=True)))  # fmt: skip


def met_on_some():
    draw = Random(0)
    sizes = draw.choices(list(PER_GPU), [5, 2, 1, 1], k=7)
    return tuple(an_llm(f"m{i}", size, 10 ** draw.uniform(-2, 1.3)) for i, size in enumerate(sizes))


@pytest.mark.parametrize("limit", [None, 1], ids=["any-tensor", "one-tensor-member"])
@pytest.mark.parametrize(
    "asked", [scarce(1), scarce(2), scarce(5), met_on_some()], ids=["a", "b", "c", "met-on-some"]
)
def test_up_to_32_gpus_the_objective_only_rises(asked, limit):
    found = []
    for gpus in range(8, 33):
        policy = PlanningPolicy(gpu_limit=gpus, max_tensor_members=limit)
        found.append(objective(asked, a_problem(asked, policy=policy), ReferenceUnits()))
    assert found == sorted(found)


def asking_for_kv(asked):
    sharing = SharingPolicy(kv_request=Bytes(12 * GIB))
    return tuple(replace(llm, sharing=sharing) for llm in asked)


@pytest.mark.parametrize("estimator", [ReferenceUnits, lambda: None], ids=["muxserve", "default"])
@pytest.mark.parametrize(
    ("before", "asked", "gpus", "steps"),
    [(chatlmsys(2000), chatlmsys(2000), 32, LONG), (chatlmsys(2000), chatlmsys(2000), 32, 40),
     (scarce(1), asking_for_kv(scarce(1)), 16, LONG)],
    ids=["itself", "itself-stopped", "without-kv-requests"],
)  # fmt: skip
def test_a_warm_planner_plans_as_a_cold_one(before, asked, gpus, steps, estimator):
    """What it remembers saves time and changes no plan."""
    policy = PlanningPolicy(gpu_limit=gpus)
    warm, cold = DefaultPlanner(estimator=estimator()), DefaultPlanner(estimator=estimator())
    best_plan(warm, a_problem(before, policy=policy), max_steps=LONG)
    problem = a_problem(asked, policy=policy)
    assert best_plan(warm, problem, max_steps=steps) == best_plan(cold, problem, max_steps=steps)


def objective(asked, problem, estimator):
    """All met and on how few GPUs; else goodput^2 x worst ratio, a class counting ten times."""
    found = best_plan(DefaultPlanner(estimator=estimator), problem, max_steps=LONG).prediction
    ratios = [(llm, found.models[llm.name].ratio) for llm in asked]
    if all(ratio > 1 - 1e-6 for _, ratio in ratios):
        return (True, -found.gpus_used)
    classes = sorted({llm.priority for llm in asked})
    weights = [llm.demand.rate * 10 ** classes.index(llm.priority) for llm in asked]
    served = sum(weight * ratio for weight, (_, ratio) in zip(weights, ratios, strict=True))
    return (False, round((served / sum(weights)) ** 2 * min(r for _, r in ratios), 5))
