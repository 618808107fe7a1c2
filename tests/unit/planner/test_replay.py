"""The released planner, replayed to the published decimals."""

import pytest

from mux_core.errors import SpecError
from mux_core.estimator.muxserve import ReplayRules
from mux_core.estimator.reference import ReferenceUnits
from mux_core.planners.replay import ReplayPlanner
from mux_core.planners.strategies import make_planner
from mux_core.planning import best_plan
from planner_builders import (
    PUBLISHED_SYSTEMS,
    a_problem,
    assert_published,
    nodes,
    synthetic,
)

SOME = ("synthetic_alpha0.9_scale1.25", "chatlmsys_condense500", "chatlmsys_condense2000")
"""All eleven are replayed in tests/integration/test_planner_replay.py."""


@pytest.mark.parametrize("strategy", PUBLISHED_SYSTEMS)
@pytest.mark.parametrize("case", SOME)
def test_replay_equals_the_published_estimates(case, strategy):
    assert_published(case, strategy)


@pytest.mark.parametrize(
    "switch", ["stale_mesh_index", "running_mean_decode", "ceil_batch", "occupied_kv",
               "full_cap_zero", "uncapped_mean_score"],
)  # fmt: skip
def test_each_switch_alone_still_plans_every_llm(switch):
    rules = ReplayRules().with_switches({switch: False})
    plan = best_plan(
        ReplayPlanner(rules=rules), a_problem(synthetic(0.9, 1.0)[8:], cluster=nodes(3))
    )
    assert {member.model for _, member in plan.proposed.members()} == set(plan.prediction.models)


def test_an_unknown_switch_names_the_known_ones():
    with pytest.raises(SpecError, match="switch nonsense: unknown; one of stale_mesh_index"):
        ReplayRules().with_switches({"nonsense": True})


def test_switches_belong_to_the_replays():
    with pytest.raises(SpecError, match="has no switches"):
        make_planner("spatial", estimator=ReferenceUnits(), switches={"ceil_batch": False})
