"""All published cases, replayed to the published decimals."""

import pytest

from mux_core.estimator.reference import ReferenceUnits
from mux_core.planners.strategies import make_planner
from mux_core.planning import best_plan
from planner_builders import a_problem, published_cases, published_estimates

CASES = published_cases()
PUBLISHED = published_estimates()
SYSTEMS = {
    "muxserve-released": "released",
    "muxserve-fixed": "index_fixed",
    "spatial-replicas": "replicas",
}


def score(models):
    offered = sum(m.offered for m in models.values())
    return sum(m.offered * m.served for m in models.values()) / offered


@pytest.mark.parametrize("strategy", SYSTEMS)
@pytest.mark.parametrize("case", CASES)
def test_replay_equals_the_published_estimates(case, strategy):
    planner = make_planner(strategy, estimator=ReferenceUnits())
    found = best_plan(planner, a_problem(CASES[case])).prediction
    row, column = PUBLISHED[case], SYSTEMS[strategy]
    assert score(found.models) == pytest.approx(float(row[f"{column}_score"]), abs=1e-4)
    assert found.goodput == pytest.approx(float(row[f"{column}_goodput_req_s"]), abs=0.005)
    assert found.worst_ratio == pytest.approx(float(row[f"{column}_min_ratio"]), abs=5e-4)
    assert found.gpus_used == int(row[f"{column}_gpus"])
