"""The prediction of a placement, as it stands and not as it was asked for."""

from dataclasses import replace

from mux_core.estimator.queueing import QueueingUnits
from mux_core.llm import SharingPolicy
from mux_core.planners.default import DefaultPlanner
from mux_core.planners.forecast import predict
from mux_core.planning import best_plan
from mux_core.units import GIB, Bytes
from planner_builders import a_problem, an_llm, nodes


def test_a_kv_request_that_was_not_granted_takes_nothing_from_the_others():
    estimator = QueueingUnits()
    problem = a_problem((an_llm("a", rate=1.0), an_llm("b", rate=1.0)), cluster=nodes(1, 1))
    placed = best_plan(DefaultPlanner(estimator=estimator), problem).proposed
    greedy = replace(problem.llms[0], sharing=SharingPolicy(kv_request=Bytes(1000 * GIB)))
    asked = replace(problem, llms=(greedy, problem.llms[1]))
    before, after = (predict(p, placed, estimator).models["b"] for p in (problem, asked))
    assert len(placed.units[0].members) == 2
    assert before.served == after.served == 1.0
