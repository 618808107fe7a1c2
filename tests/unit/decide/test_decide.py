"""Decisions on a small world: what is done, in which order, and that it ends."""

from dataclasses import replace

import pytest

from decide_world import World, llm
from mux_core.actions import (
    ApplyUnit,
    ForgetUnit,
    InspectModel,
    LabelUnit,
    PublishRoutes,
    RecordPlan,
    StartUnit,
    StopUnit,
    Why,
    WriteUnit,
)
from mux_core.llm import SharingPolicy
from mux_core.reasons import Reason
from mux_core.snapshot import LlmObject
from mux_core.specs import ModelSource, PoolKey, Scheme
from mux_core.status import Resolved
from mux_core.units import MIB, Bytes, UnitId


def kinds(actions: object) -> list[str]:
    return [type(action).__name__ for action in actions]  # type: ignore[attr-defined]


@pytest.fixture
def world() -> World:
    return World()


def test_a_first_model_goes_from_nothing_to_serving(world: World) -> None:
    world.add(llm("a"))
    assert kinds(world.look()) == ["InspectModel", "PublishRoutes"]
    first = world.look()
    assert kinds(first)[:2] == ["EndInspection", "RecordPlan"]
    assert kinds(first).index("WriteUnit") < kinds(first).index("StartUnit")
    world.settle()
    assert world.status("a").condition("Ready").holds  # type: ignore[union-attr]
    assert world.status("a").unit == "default-r1-u0"


def test_settling_twice_does_nothing(world: World) -> None:
    world.add(llm("a"), llm("b"))
    world.settle()
    assert world.look() == ()


def test_a_second_model_joins_the_running_unit_without_a_new_carrier(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    world.add(llm("b"))
    done = world.settle()
    assert not any(isinstance(action, StartUnit | StopUnit) for action in done)
    (told,) = (action for action in done if isinstance(action, ApplyUnit))
    assert [member.model for member in told.spec.members] == ["a", "b"]
    assert told.spec.generation == 2


def test_a_deleted_model_loses_its_route_before_its_unit_hears_of_it(world: World) -> None:
    world.add(llm("a"), llm("b"))
    world.settle()
    del world.llms["b"]
    names = kinds(world.look())
    assert names.index("PublishRoutes") < names.index("ApplyUnit")
    assert names.index("LabelUnit") < names.index("ApplyUnit")
    world.settle()
    assert [route.model for route in world.seen.routes.routes] == ["a"]  # type: ignore[union-attr]


def test_the_last_model_takes_its_unit_along_and_the_record_goes_last(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    del world.llms["a"]
    assert kinds(world.look()) == ["PublishRoutes", "LabelUnit", "StopUnit"]
    assert kinds(world.look()) == ["ForgetUnit"]
    assert world.look() == ()
    assert (world.seen.units, world.seen.carriers) == ((), ())


def test_a_deleted_pool_stops_its_units(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    world.seen = replace(world.seen, pool=None)
    stops = [action for action in world.look() if isinstance(action, StopUnit)]
    assert [stop.why for stop in stops] == [Why.POOL_GONE]
    world.settle()
    assert world.status("a").condition("Ready").reason == Reason.POOL_NOT_FOUND  # type: ignore[union-attr]


def test_a_dead_unit_comes_back_as_its_next_incarnation(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    unit = world.seen.units[0].unit
    world.kill(unit)
    first = world.look()
    assert [a.why for a in first if isinstance(a, WriteUnit)] == [Why.UNIT_DIED]
    assert not any(isinstance(action, StartUnit) for action in first)
    (started,) = (action for action in world.settle() if isinstance(action, StartUnit))
    assert started.record.spec.incarnation == 2
    assert started.record.unit == unit


def test_a_unit_that_died_waits_for_its_pause(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    unit = world.seen.units[0].unit
    world.kill(unit)
    world.not_before[unit] = world.seen.now + 5
    assert not any(isinstance(action, StartUnit) for action in world.settle())
    world.seen = replace(world.seen, now=world.seen.now + 6)
    assert any(isinstance(action, StartUnit) for action in world.settle())


def test_an_operator_that_knows_no_unit_yet_keeps_the_published_routes(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    world.reports.clear()
    assert world.look() == ()
    assert world.seen.routes.routes[0].serving  # type: ignore[union-attr]


def test_an_endpoint_of_a_dead_unit_leaves_the_routes(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    world.kill(world.seen.units[0].unit)
    world.look()
    assert not world.seen.routes.routes[0].serving  # type: ignore[union-attr]


def test_a_name_belongs_to_who_runs_with_it(world: World) -> None:
    world.add(llm("young", served_name="x", created_at=5.0))
    world.settle()
    world.add(llm("old", served_name="x", created_at=1.0))
    world.settle()
    assert world.status("young").condition("Ready").holds  # type: ignore[union-attr]
    assert world.status("old").condition("Ready").reason == Reason.NAME_CONFLICT  # type: ignore[union-attr]


def test_a_bad_edit_does_not_take_a_serving_model_down(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    source = ModelSource(scheme=Scheme.PVC, location="models/wrong")
    before = world.llms["a"]
    assert before.spec is not None
    world.errors["a"] = Resolved(source=source.key, error_reason=Reason.NOT_FOUND, message="gone")
    world.add(replace(before, generation=2, path="/models/models/wrong",
                      spec=replace(before.spec, source=source)))  # fmt: skip
    done = world.settle()
    assert not any(isinstance(action, ApplyUnit | StopUnit) for action in done)
    assert world.status("a").condition("ModelResolved").reason == Reason.NOT_FOUND  # type: ignore[union-attr]
    assert world.seen.routes.routes[0].serving  # type: ignore[union-attr]
    # Corrected, it moves to the new folder in place.
    del world.errors["a"]
    right = ModelSource(scheme=Scheme.PVC, location="models/right")
    world.add(replace(world.llms["a"], generation=3, path="/models/models/right",
                      spec=replace(before.spec, source=right)))  # fmt: skip
    (told,) = (action for action in world.settle() if isinstance(action, ApplyUnit))
    assert told.spec.members[0].path == "/models/models/right"


def test_a_failed_inspection_is_repeated_after_an_edit_and_not_before(world: World) -> None:
    item = llm("a")
    assert item.spec is not None
    world.errors["a"] = Resolved(source=item.spec.source.key, error_reason=Reason.NOT_FOUND,
                                 message="no folder")  # fmt: skip
    world.add(item)
    world.settle()
    assert world.look() == ()
    del world.errors["a"]
    world.add(replace(world.llms["a"], generation=2))
    assert any(isinstance(action, InspectModel) for action in world.settle())
    assert world.status("a").condition("Ready").holds  # type: ignore[union-attr]


def test_a_claim_that_a_running_unit_lacks_is_said(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    world.add(llm("b", claim="other"))
    done = world.settle()
    assert not any(isinstance(action, ApplyUnit) for action in done)
    assert world.status("b").condition("Ready").reason == Reason.CLAIM_NOT_MOUNTED  # type: ignore[union-attr]


def test_every_model_keeps_its_port(world: World) -> None:
    world.add(llm("a"), llm("b"))
    world.settle()
    ports = {name: world.status(name).port for name in ("a", "b")}
    assert sorted(ports.values()) == [10000, 10001]
    del world.llms["a"]
    world.add(llm("c"))
    world.settle()
    assert world.status("b").port == ports["b"]
    assert world.status("c").port == ports["a"]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (llm("x", sharing=SharingPolicy(kv_request=100 * MIB)), Reason.DOES_NOT_FIT),
        (llm("x", sharing=SharingPolicy(kv_request=50 * MIB)), Reason.NO_CAPACITY),
        (llm("x", sharing=SharingPolicy(tenant_group="blue")), Reason.TENANT_CONFLICT),
        (llm("x", sharing=SharingPolicy(exclusive=True)), Reason.NO_CAPACITY),
        (llm("x", replicas=2), Reason.SHARED),
    ],
    ids=["larger than a slot", "larger than what is left", "another tenant", "wants its own",
         "one replica of two"],
)  # fmt: skip
def test_why_a_model_has_no_place(world: World, item: LlmObject, reason: Reason) -> None:
    world.add(llm("a"))
    world.settle()
    world.add(item)
    world.settle()
    placed = world.status("x").condition("Placed")
    assert placed is not None
    if reason is not Reason.SHARED:
        assert placed.reason == reason
        assert "x" in placed.message


def test_routes_of_other_pools_stay(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    other = llm("z")
    assert other.spec is not None
    world.add(replace(other, spec=replace(other.spec, pool="other")))
    routes = world.seen.routes
    assert routes is not None
    foreign = replace(routes.routes[0], model="z", served_name="z")
    world.seen = replace(world.seen, routes=replace(routes, routes=(*routes.routes, foreign)))
    world.add(llm("b"))
    world.settle()
    assert world.seen.routes is not None
    assert [route.model for route in world.seen.routes.routes] == ["a", "b", "z"]
    assert PoolKey(namespace="ns", name="other") != world.seen.key


def test_ten_plans_are_kept(world: World) -> None:
    for number in range(14):
        world.add(llm(f"m{number:02}"))
        world.settle()
        del world.llms[f"m{number:02}"]
        world.settle()
    assert len(world.seen.plans) == 10
    assert max(plan.revision for plan in world.seen.plans) == len(
        [action for action in world.log if isinstance(action, RecordPlan)]
    )


def test_a_unit_that_refused_its_spec_is_not_told_again(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    unit = world.seen.units[0].unit
    snapshot, asked, plan = world.plan()
    from mux_core.decide import decide

    behind = replace(snapshot.reports[unit], generation=0)
    again = replace(snapshot, reports={unit: behind})
    assert "ApplyUnit" in kinds(decide(again, asked, plan))
    refused = replace(again, refused={unit: "no"})
    assert "ApplyUnit" not in kinds(decide(refused, asked, plan))


def test_an_orphan_without_a_record_is_stopped(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    orphan = replace(world.seen.carriers[0], unit=UnitId("default-r9-u0"), name="orphan")
    world.seen = replace(world.seen, carriers=(*world.seen.carriers, orphan))
    stops = [a for a in world.settle() if isinstance(a, StopUnit | ForgetUnit)]
    assert [stop.unit for stop in stops][:1] == ["default-r9-u0"]
    assert LabelUnit is not PublishRoutes


def test_memory_added_to_a_slot_counts_once_its_unit_is_gone(world: World) -> None:
    world.add(llm("a"))
    world.settle()
    before = world.seen.units
    (node,) = world.seen.nodes
    world.seen = replace(world.seen, nodes=(replace(node, memory=Bytes(128 * MIB)),))
    assert world.settle() == ()
    assert world.seen.units == before
    del world.llms["a"]
    world.settle()
    world.add(llm("b"))
    world.settle()
    assert world.seen.units[0].spec.memory_bytes == 128 * MIB
