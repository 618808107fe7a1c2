"""What cannot be read, found or run gets its reason, and everything else goes on serving."""

from dataclasses import replace

import pytest

from mux_core.actions import InspectModel, StartUnit, StopUnit
from mux_core.problem import planned_rate
from mux_core.snapshot import Inspection
from mux_core.specs import ModelSource, PoolKey, Scheme
from mux_core.status import MeasuredDemand
from mux_core.verdicts import ConditionType as C
from world_builders import KEY, NOW, World, a_pool, a_world, an_llm, kinds, settled, slots

U0 = "pool-r1-u0"


def elsewhere(path: str) -> ModelSource:
    return ModelSource(scheme=Scheme.PVC, location=path)


def test_two_models_with_one_served_name_cost_only_the_younger() -> None:
    world = settled(an_llm("old", created=2.0, served_name="chat"),
                    an_llm("new", created=5.0, served_name="chat"))  # fmt: skip
    assert world.said("new", C.MODEL_RESOLVED) == ("False", "NameConflict")
    assert world.said("new", C.READY) == ("False", "NameConflict")
    assert "'chat' is taken by LLMDeployment old" in world.status("new").conditions[0].message
    assert world.said("old", C.READY) == ("True", "Ready")
    assert world.placed == {U0: ["old"]}


def test_the_one_that_runs_keeps_its_name_against_an_older_claimant() -> None:
    world = settled(an_llm("runs", created=5.0))
    world.add(an_llm("older", created=1.0, served_name="runs"))
    world.settle()
    assert world.said("older", C.READY) == ("False", "NameConflict")
    assert world.said("runs", C.READY) == ("True", "Ready")


def test_when_the_holder_goes_the_name_passes_on() -> None:
    world = settled(an_llm("old", served_name="chat"),
                    an_llm("new", created=5.0, served_name="chat"))  # fmt: skip
    del world.llms["old"]
    world.settle(looks=20)
    assert world.said("new", C.READY) == ("True", "Ready")


def test_a_checkpoint_that_cannot_be_used_is_read_once_per_manifest() -> None:
    world = a_world(an_llm("a"), broken={"a": ("CorruptCheckpoint", "model.safetensors: cut")})
    taken = world.settle()
    assert kinds(taken).count("InspectModel") == 1
    assert world.said("a", C.READY) == ("False", "CorruptCheckpoint")
    assert world.status("a").condition(C.READY).message == "model.safetensors: cut"
    assert world.status("a").state == "Failed"

    world.now += 3600
    assert world.cycle() == (), "a permanent error waits for an edit"

    world.broken = {}
    world.edit("a", priority=1)
    taken = world.settle()
    assert kinds(taken).count("InspectModel") == 1
    assert world.said("a", C.READY) == ("True", "Ready")


def test_what_was_read_once_is_known_to_the_next_operator() -> None:
    world = settled(an_llm("a"))
    del world.carriers[U0, 1]
    world.reports, world.demand = {}, {}
    assert not [x for x in world.settle() if isinstance(x, InspectModel)]
    assert world.said("a", C.WEIGHTS_CACHED) == ("True", "Cached")


def test_an_inspect_run_under_way_says_what_it_waits_for() -> None:
    world = a_world(an_llm("a"))
    key = world.llms["a"].spec.source.key
    world.inspections["a"] = Inspection(model="a", source=key, message="claim models is Pending")
    world.cycle()
    ready = world.status("a").condition(C.READY)
    assert (ready.status, ready.reason) == ("False", "Resolving")
    assert ready.message.endswith(": claim models is Pending")


def test_a_bad_edit_leaves_the_running_model_as_it_was() -> None:
    world = settled(an_llm("a"))
    before = world.records[U0]
    world.edit("a", source=elsewhere("models/typo"))
    world.broken = {"a": ("NotFound", "models/typo: no such folder")}

    taken = world.settle()

    assert kinds(taken) == ["InspectModel", "EndInspection"]
    assert world.records[U0] == before
    assert world.said("a", C.MODEL_RESOLVED) == ("False", "NotFound")
    assert world.said("a", C.RUNTIME_READY) == ("True", "Serving")
    assert [r.serving for r in world.routes.routes] == [True]


def test_a_source_of_another_release_is_refused_with_the_fix() -> None:
    item = an_llm("a", source=ModelSource(scheme=Scheme.HF, location="org/x"))
    world = a_world(replace(item, path="", source_error="model.uri: hf:// is not fetched"))
    assert kinds(world.settle()) == ["PublishRoutes"]
    assert world.said("a", C.READY) == ("False", "UnsupportedSource")


def test_a_claim_that_is_not_there_stops_no_other_models_unit() -> None:
    """A pod that mounts an absent claim never starts, so units mount only what was read."""
    world = a_world(an_llm("good", created=NOW), an_llm("lost", claim="absent", created=NOW))
    stuck = Inspection(model="lost", source=world.llms["lost"].spec.source.key,
                       message='claim "absent" not found')  # fmt: skip
    for _ in range(40):
        world.cycle()
        world.pass_time()
        world.inspections["lost"] = stuck
    assert world.carriers[U0, 1].claims == {"models"}
    assert world.said("good", C.READY) == ("True", "Ready")
    assert world.said("lost", C.READY) == ("False", "Resolving")


def test_models_applied_together_on_two_claims_share_the_first_unit() -> None:
    """The first pod waits a moment for the other inspect run: what it mounts is then fixed."""
    world = a_world(an_llm("a", created=NOW), an_llm("b", claim="other", created=NOW))
    world.cycle()
    slow = world.inspections["b"]
    world.pass_time()
    world.inspections["b"] = slow
    assert not [x for x in world.cycle() if isinstance(x, StartUnit)]
    world.settle()
    assert world.carriers[U0, 1].claims == {"models", "other"}
    assert world.placed == {U0: ["a", "b"]}


def test_a_pool_that_can_no_longer_be_read_changes_nothing_that_runs() -> None:
    world = settled(an_llm("a"))
    before = (world.records, world.carriers, world.routes)
    world.pool = replace(world.pool, spec_error="gpu.max: 0; at least 1", generation=2)
    world.nodes = ()
    assert world.settle() == []
    assert (world.records, world.carriers, world.routes) == before
    assert world.said("a", C.PLACED) == ("False", "InvalidSpec")
    assert world.told.pool.condition(C.INVENTORY_READY).reason == "InvalidSpec"

    del world.llms["a"]
    world.settle()
    assert world.carriers == {}, "a deletion needs no pool"


def test_two_pools_of_a_namespace_leave_each_others_routes_and_limits_alone() -> None:
    world = settled(an_llm("a"))
    other = replace(world.routes.routes[0], model="b", served_name="b")
    world.routes = replace(world.routes, pool="other", max_queued_per_model=7,
                           routes=(*world.routes.routes, other))  # fmt: skip
    world.add(an_llm("b", pool="other"))
    assert world.cycle() == ()

    world.pool = None
    world.settle()
    assert world.routes.max_queued_per_model == 7
    assert [r.served_name for r in world.routes.routes] == ["b"]


def test_after_a_restart_the_last_measured_rate_is_planned_with() -> None:
    world = settled(an_llm("a"))
    world.demand = {"a": MeasuredDemand(rate=4.0, source="RuntimeCounters", as_of=world.now)}
    world.settle()
    before = world.records[U0]
    assert before.spec.members[0].rate == 4.5, "and two standard deviations of chance"

    world.demand = {}
    assert world.cycle() == ()
    assert world.records[U0] == before
    assert world.said("a", C.DEMAND_KNOWN) == ("True", "RuntimeCounters")
    world.now += 400
    world.cycle()
    assert world.said("a", C.DEMAND_KNOWN) == ("False", "Stale")
    assert world.status("a").demand.rate == 4.0
    assert world.said("a", C.PLACED) == ("True", "Shared")


@pytest.mark.parametrize(
    ("measured", "declared", "before", "planned"),
    [
        pytest.param(0.0, 2.0, 0.0, 2.0, id="the declared rate is where planning starts"),
        pytest.param(1.0, 2.0, 2.0, 2.0, id="and a floor afterwards"),
        pytest.param(5.0, 2.0, 2.0, 5.6, id="more is measured"),
        pytest.param(24.0, 0.0, 20.0, 20.0, id="a small change changes nothing"),
        pytest.param(2.7, 0.0, 2.0, 2.0, id="nor does what may be chance at a low rate"),
        pytest.param(26.0, 0.0, 20.0, 27.0, id="a larger one counts, and a little more"),
        pytest.param(14.0, 0.0, 20.0, 20.0, id="less is kept longer than more is taken"),
        pytest.param(9.0, 0.0, 20.0, 9.0, id="until it is half"),
        pytest.param(0.0, 4.0, 20.0, 4.0, id="down to the declared rate"),
        pytest.param(20.0, 24.0, 20.0, 24.0, id="a floor that is raised counts at once"),
        pytest.param(1.234, 0.0, 0.0, 1.5, id="two digits are enough"),
        pytest.param(0.001, 0.0, 0.0, 0.0, id="next to nothing is nothing"),
    ],
)
def test_the_rate_to_plan_with(
    measured: float, declared: float, before: float, planned: float
) -> None:
    known = MeasuredDemand(rate=measured, source="RuntimeCounters", as_of=0.0)
    assert planned_rate(known, declared, before) == pytest.approx(planned)


def test_a_rate_that_fell_while_requests_wait_is_no_rise_at_the_next_look() -> None:
    known = MeasuredDemand(rate=8.0, lasting=8.0, source="RuntimeCounters", as_of=0.0, waiting=600)
    fallen = planned_rate(known, 0.0, 25.0)
    assert fallen == 13.0, "with what takes the queue away"
    assert planned_rate(known, 0.0, fallen) == fallen


def test_a_rate_seen_for_a_moment_does_not_undo_a_plan() -> None:
    """An operator that has just started has seen nothing yet."""
    known = MeasuredDemand(rate=0.0, source="RuntimeCounters", as_of=0.0, age_s=1.0)
    assert planned_rate(known, 0.0, 12.0) == 12.0
    assert planned_rate(None, 0.0, 12.0) == 12.0
    busy = MeasuredDemand(rate=3.0, source="RuntimeCounters", as_of=0.0, age_s=1.0)
    assert planned_rate(busy, 0.0, 0.0) == 0.0, "three requests in a second are no rate yet"


def test_a_name_in_another_pool_of_the_namespace_conflicts_too() -> None:
    world = World()
    world.add(an_llm("there", pool="other", served_name="chat"),
              an_llm("here", created=9.0, served_name="chat"))  # fmt: skip
    world.settle()
    assert world.said("here", C.READY) == ("False", "NameConflict")
    assert PoolKey(namespace=KEY.namespace, name="other") != KEY


def test_an_unplaced_model_of_a_broken_pool_is_told_so() -> None:
    pool = replace(a_pool(), spec_error="groupSizes: empty")
    world = a_world(an_llm("a"), pool=pool, nodes=(slots(1),))
    world.settle()
    assert not [x for x in world.decided() if isinstance(x, StartUnit | StopUnit)]
    assert "GPUPool pool: groupSizes: empty" in world.status("a").condition(C.PLACED).message


def test_a_running_model_that_asks_for_a_taken_name_keeps_the_one_it_runs_with() -> None:
    world = settled(an_llm("a"), an_llm("b"))
    before = world.records[U0]
    world.edit("a", served_name="b")
    world.add(an_llm("claimant", served_name="a"))

    world.settle()

    assert world.records[U0] == before
    assert world.serving == ["a", "b"]
    assert world.status("a").served_name == "a"
    assert world.said("a", C.MODEL_RESOLVED) == ("False", "NameConflict")
    assert world.said("a", C.RUNTIME_READY) == ("True", "Serving")
    assert world.said("claimant", C.READY) == ("False", "NameConflict")

    world.edit("a", served_name="c")
    world.settle()
    assert world.said("a", C.READY) == ("True", "Ready")
    assert world.serving == ["a", "b", "c"], "the name it left passes on"


def test_two_running_models_may_swap_their_names() -> None:
    world = settled(an_llm("a"), an_llm("b"))
    world.edit("a", served_name="b")
    world.edit("b", served_name="a")
    world.settle()
    assert {m.model: m.served_name for m in world.records[U0].spec.members} == {"a": "b", "b": "a"}
    assert [world.said(name, C.READY) for name in "ab"] == [("True", "Ready")] * 2


def test_a_name_that_another_pool_serves_is_not_taken_by_an_older_object() -> None:
    world = settled(an_llm("a"))
    theirs = replace(world.routes.routes[0], model="b", served_name="chat")
    world.routes = replace(world.routes, routes=(*world.routes.routes, theirs))
    world.add(an_llm("b", pool="other", created=9.0, served_name="chat"))
    world.add(an_llm("older", created=1.0, served_name="chat"))
    world.settle()
    assert world.said("older", C.READY) == ("False", "NameConflict")
    assert world.serving == ["a", "chat"]


def test_an_inspect_run_that_failed_itself_is_repeated_after_a_while() -> None:
    world = a_world(an_llm("a"), broken={"a": ("InspectionFailed", "the pod was evicted")})
    assert kinds(world.settle()).count("InspectModel") == 1
    assert world.said("a", C.READY) == ("False", "InspectionFailed")
    world.now += 30
    assert world.cycle() == ()
    world.now += 31
    world.broken = {}
    world.settle()
    assert world.said("a", C.READY) == ("True", "Ready")
