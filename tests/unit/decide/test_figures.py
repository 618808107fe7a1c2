"""Predicted and observed figures in a status: kept while nothing else is known, written seldom."""

from dataclasses import replace

from decide_world import World, llm
from mux_core.comparison import WINDOW_S
from mux_core.planning import MemberEstimate, Prediction, stay
from mux_core.pool_verdicts import Outcome
from mux_core.seldom import RATE_EVERY_S
from mux_core.status import Figures, LlmStatus, MeasuredDemand
from mux_core.units import ModelName
from mux_core.verdicts import statuses

A = ModelName("a")


def a_world() -> World:
    world = World()
    world.add(llm("a"))
    world.settle()
    return world


def told(
    world: World, observed: Figures | None, *, at: float = 0.0, rate: float = 2.0
) -> LlmStatus:
    """The status at a time after the world began; it is what the next one is told after."""
    snapshot, asked, choice = world.plan()
    now = snapshot.now + at
    demand = MeasuredDemand(rate=rate, source="RuntimeCounters", as_of=now)
    snapshot = replace(snapshot, seen=replace(snapshot.seen, now=now), demand={A: demand},
                       observed={} if observed is None else {A: observed})  # fmt: skip
    status = statuses(Outcome(snapshot=snapshot, asked=asked, choice=choice)).llms[A]
    world.llms["a"] = replace(world.llms["a"], status=status)
    return status


def seen(world: World, at: float, served: float) -> Figures:
    return Figures(as_of=world.seen.now + at, rate=2.0, served=served)


def test_a_status_shows_what_the_plan_predicts_and_keeps_it_while_a_plan_is_searched() -> None:
    world = a_world()
    predicted = world.status("a").predicted
    assert predicted is not None
    assert predicted.tpot_mean_s is not None
    assert predicted.served == predicted.rate
    snapshot, asked, _ = world.plan()
    choice = replace(world.plan()[2], plan=stay(asked.problem))
    report = statuses(Outcome(snapshot=snapshot, asked=asked, choice=choice, planning=True))
    assert report.llms[A].predicted == predicted


def test_a_model_that_lost_its_place_is_predicted_nothing() -> None:
    world = a_world()
    snapshot, asked, choice = world.plan()
    nothing = Prediction(goodput=0.0, worst_ratio=0.0, gpus_used=0, models={
        A: MemberEstimate(offered=1.0, served=0.0, replicas=0)})  # fmt: skip
    choice = replace(choice, plan=replace(choice.plan, prediction=nothing))
    report = statuses(Outcome(snapshot=snapshot, asked=asked, choice=choice))
    assert report.llms[A].predicted is None


def test_what_is_observed_is_written_seldom() -> None:
    world = a_world()
    first = seen(world, 0.0, 1.0)
    assert told(world, first).observed == first
    assert told(world, seen(world, 5.0, 1.1), at=5.0).observed == first
    later = seen(world, RATE_EVERY_S, 1.2)
    assert told(world, later, at=RATE_EVERY_S).observed == later


def test_what_was_seen_of_another_plan_does_not_stay_beside_a_new_prediction() -> None:
    world = a_world()
    told(world, seen(world, 0.0, 1.0))
    assert told(world, None, at=5.0).observed is not None
    status = replace(world.llms["a"].status, predicted=Figures(rate=9.0, served=9.0))
    world.llms["a"] = replace(world.llms["a"], status=status)
    assert told(world, None, at=6.0).observed is None


def test_a_rate_that_is_written_takes_what_is_observed_along() -> None:
    world = a_world()
    told(world, seen(world, 0.0, 1.0))
    busy = seen(world, 5.0, 40.0)
    assert told(world, busy, at=5.0, rate=50.0).observed == busy


def test_figures_of_a_model_that_is_seldom_asked_do_not_come_and_go() -> None:
    world = a_world()
    first = seen(world, 0.0, 1.0)
    told(world, first)
    assert told(world, None, at=WINDOW_S - 1).observed == first
    assert told(world, None, at=WINDOW_S + 1).observed is None
