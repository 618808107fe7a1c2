"""Models come and go: what is done, in which order, and how the world looks afterwards."""

from dataclasses import replace

import pytest

from mux_core.actions import ApplyUnit, PublishRoutes, StartUnit, StopUnit, WriteUnit
from mux_core.llm import SharingPolicy
from mux_core.snapshot import CarrierState
from mux_core.units import GIB, MIB, Bytes
from mux_core.verdicts import ConditionType as C
from world_builders import KEY, a_pool, a_world, an_llm, kinds, settled, slots

U0 = "pool-r1-u0"


def test_a_first_model_is_read_then_placed_then_served() -> None:
    world = a_world(an_llm("a"))

    assert kinds(world.cycle()) == ["InspectModel", "PublishRoutes"]
    assert world.said("a", C.MODEL_RESOLVED) == ("Unknown", "Resolving")
    world.pass_time()
    assert kinds(world.cycle()) == ["RecordPlan", "EnsureService", "WriteUnit", "StartUnit"]
    assert world.said("a", C.RUNTIME_READY) == ("False", "UnitNotReady")
    assert kinds(world.cycle()) == ["EndInspection"]
    world.pass_time()
    assert kinds(world.cycle()) == ["PublishRoutes", "LabelUnit"]
    assert kinds(world.cycle()) == []

    assert world.placed == {U0: ["a"]}
    assert world.said("a", C.READY) == ("True", "Ready")
    assert world.status("a").state == "Serving"
    assert world.services == {("a", 10000)}
    assert [p.name for p in world.plans] == ["pool-r1"]


def test_a_second_model_joins_the_running_unit_live() -> None:
    world = settled(an_llm("a"))
    pods = dict(world.carriers)
    world.add(an_llm("b"))

    taken = world.settle()

    assert world.placed == {U0: ["a", "b"]}
    assert world.carriers.keys() == pods.keys(), "no new pod"
    assert not [x for x in taken if isinstance(x, StartUnit | StopUnit)]
    told = [x for x in taken if isinstance(x, ApplyUnit)]
    assert [x.spec.generation for x in told] == [2]
    assert world.said("b", C.READY) == ("True", "Ready")
    assert {r.served_name for r in world.routes.routes if r.serving} == {"a", "b"}
    assert world.services == {("a", 10000), ("b", 10001)}


def test_both_models_of_one_apply_share_one_unit_and_one_pod() -> None:
    world = settled(an_llm("a"), an_llm("b"), nodes=(slots(2),))
    assert world.placed == {U0: ["a", "b"]}
    assert list(world.carriers) == [(U0, 1)]


def test_a_claim_the_running_unit_lacks_is_said_and_touches_nobody() -> None:
    world = settled(an_llm("a"))
    pods = dict(world.carriers)
    world.add(an_llm("b", claim="elsewhere"))

    world.settle()

    assert world.said("b", C.PLACED) == ("False", "ClaimNotMounted")
    message = world.status("b").condition(C.PLACED).message
    assert U0 in message
    assert "elsewhere" in message
    assert "delete its pod" in message
    assert world.placed == {U0: ["a"]}
    assert world.carriers == pods
    assert world.said("a", C.READY) == ("True", "Ready")


def test_its_next_pod_mounts_the_claim() -> None:
    world = settled(an_llm("a"))
    world.add(an_llm("b", claim="elsewhere"))
    world.settle()
    del world.carriers[U0, 1]
    world.reports.clear()

    world.settle()

    assert world.carriers[U0, world.records[U0].spec.incarnation].claims == {"models", "elsewhere"}
    assert world.placed == {U0: ["a", "b"]}
    assert world.said("b", C.READY) == ("True", "Ready")


def test_a_model_larger_than_every_slot_does_not_fit_with_numbers() -> None:
    world = settled(an_llm("a"), an_llm("big"), weights={"big": 3 * GIB})

    assert world.said("big", C.PLACED) == ("False", "DoesNotFit")
    message = world.status("big").condition(C.PLACED).message
    assert "LLM big needs 3.0 GiB on each of 1 GPU" in message
    assert "largest slot of the pool has 2.0 GiB" in message
    assert "use a smaller model" in message
    assert world.status("big").state == "Failed"
    assert world.said("a", C.READY) == ("True", "Ready")
    assert world.told.pool.condition(C.PLAN_CURRENT).reason == "Infeasible"


def test_a_full_pool_has_no_capacity_until_a_model_leaves() -> None:
    weights = {"a": 1500 * MIB, "b": 1500 * MIB}
    world = settled(an_llm("a"), an_llm("b"), weights=weights)

    assert world.said("b", C.PLACED) == ("False", "NoCapacity")
    message = world.status("b").condition(C.PLACED).message
    assert "LLM b needs 1.5 GiB" in message
    assert "no slot is free" in message
    assert world.status("b").state == "Pending", "room may come"

    del world.llms["a"]
    world.settle(looks=20)
    assert list(world.placed.values()) == [["b"]]
    assert world.said("b", C.READY) == ("True", "Ready")


EXCLUSIVE = SharingPolicy(exclusive=True)


@pytest.mark.parametrize(
    ("first", "second", "nodes", "units", "reason"),
    [
        pytest.param({}, {"sharing": EXCLUSIVE}, 2, 2, "Exclusive", id="exclusive takes its own"),
        pytest.param({"sharing": EXCLUSIVE}, {}, 2, 2, "Shared", id="none joins an exclusive one"),
        pytest.param({}, {"sharing": EXCLUSIVE}, 1, 1, "NoCapacity", id="no slot for exclusive"),
        pytest.param({"sharing": SharingPolicy(tenant_group="x")},
                     {"sharing": SharingPolicy(tenant_group="y")}, 2, 2, "Shared",
                     id="tenant groups lie apart"),
        pytest.param({"sharing": SharingPolicy(tenant_group="x")},
                     {"sharing": SharingPolicy(tenant_group="y")}, 1, 1, "TenantConflict",
                     id="only another group has room"),
        pytest.param({"sharing": SharingPolicy(tenant_group="x")},
                     {"sharing": SharingPolicy(tenant_group="x")}, 2, 1, "Shared",
                     id="one group shares"),
    ],
)  # fmt: skip
def test_who_may_share(
    first: dict[str, SharingPolicy], second: dict[str, SharingPolicy], nodes: int, units: int,
    reason: str,
) -> None:  # fmt: skip
    world = settled(an_llm("a", **first), an_llm("b", **second), nodes=(slots(nodes),))
    assert len(world.records) == units
    assert world.said("b", C.PLACED)[1] == reason
    assert world.said("a", C.READY) == ("True", "Ready")


def test_a_pool_that_allows_no_sharing_gives_each_its_slot() -> None:
    world = settled(an_llm("a"), an_llm("b"), pool=a_pool(allow_sharing=False), nodes=(slots(2),))
    assert world.placed == {"pool-r1-u0": ["a"], "pool-r1-u1": ["b"]}


def test_a_pool_cap_leaves_free_slots_alone() -> None:
    pool = a_pool(allow_sharing=False, gpu_limit=1)
    world = settled(an_llm("a"), an_llm("b"), pool=pool, nodes=(slots(2),))
    assert world.placed == {U0: ["a"]}
    assert world.said("b", C.PLACED) == ("False", "NoCapacity")


def test_priority_goes_before_the_alphabet() -> None:
    weights = {"a": 1500 * MIB, "b": 1500 * MIB}
    world = settled(an_llm("a"), an_llm("b", priority=10), weights=weights)
    assert world.placed == {U0: ["b"]}


def test_two_replicas_take_two_units_and_shrinking_ends_the_later() -> None:
    world = settled(an_llm("a", min_replicas=2, max_replicas=2), nodes=(slots(2),))
    assert world.placed == {"pool-r1-u0": ["a"], "pool-r1-u1": ["a"]}
    assert world.status("a").ready_replicas == 2
    world.edit("a", min_replicas=1, max_replicas=1)
    world.settle()
    assert world.placed == {"pool-r1-u0": ["a"]}


def test_a_pool_that_is_absent_is_said_and_its_arrival_is_enough() -> None:
    world = a_world(an_llm("a"), pool=None, nodes=())
    world.settle()
    assert world.said("a", C.PLACED) == ("False", "PoolNotFound")
    assert f"{KEY.namespace}" in world.status("a").condition(C.PLACED).message
    world.pool, world.nodes = a_pool(), (slots(1),)
    world.settle()
    assert world.said("a", C.READY) == ("True", "Ready")


def test_deleting_one_of_two_takes_its_route_before_its_unit_hears() -> None:
    world = settled(an_llm("a"), an_llm("b"))
    pods = dict(world.carriers)
    del world.llms["b"]

    actions = world.cycle()

    assert kinds(actions) == [
        "RecordPlan", "PublishRoutes", "LabelUnit", "WriteUnit", "ApplyUnit"
    ]  # fmt: skip
    assert [r.served_name for r in actions[1].table.routes] == ["a"]
    assert actions[2].serving == {"a"}
    assert actions[2].draining == {"b"}
    assert [m.model for m in actions[4].spec.members] == ["a"]
    world.settle()
    assert world.carriers.keys() == pods.keys()
    assert world.said("a", C.READY) == ("True", "Ready")


def test_deleting_the_last_ends_the_unit_and_its_record_goes_last() -> None:
    world = settled(an_llm("a"))
    del world.llms["a"]

    taken = world.settle()

    assert kinds(taken) == ["PublishRoutes", "LabelUnit", "StopUnit", "ForgetUnit"]
    assert (world.records, world.carriers) == ({}, {})
    assert world.routes.routes == ()


def test_a_deleted_pool_ends_its_units_and_keeps_saying_why() -> None:
    world = settled(an_llm("a"))
    world.pool, world.nodes = None, ()
    world.settle()
    assert (world.records, world.carriers) == ({}, {})
    assert world.said("a", C.PLACED) == ("False", "PoolNotFound")


def test_a_dead_pod_is_followed_by_the_next_incarnation_of_the_same_unit() -> None:
    world = settled(an_llm("a"))
    world.die(U0)

    first = world.cycle()

    assert kinds(first) == ["PublishRoutes", "WriteUnit", "StopUnit"]
    assert first[1].record.spec.incarnation == 2, "written before anything is started"
    world.settle()
    assert list(world.carriers) == [(U0, 2)]
    assert world.said("a", C.READY) == ("True", "Ready")


def test_a_unit_that_keeps_dying_waits_its_pause() -> None:
    world = settled(an_llm("a"))
    world.die(U0)
    world.not_before[U0] = world.now + 60
    for _ in range(5):
        world.cycle()
        world.pass_time()
    assert world.carriers == {}
    world.now += 60
    world.settle()
    assert list(world.carriers) == [(U0, 2)]


def test_a_pod_on_its_way_out_is_not_stopped_twice_and_has_no_twin() -> None:
    world = settled(an_llm("a"))
    world.carriers[U0, 1] = replace(world.carriers[U0, 1], state=CarrierState.STOPPING)
    assert not [x for x in world.cycle() if isinstance(x, StartUnit | StopUnit)]


def test_a_refused_spec_is_said_and_not_told_again_until_it_changes() -> None:
    world = settled(an_llm("a"))
    world.add(an_llm("b"))
    world.cycle()
    world.pass_time()
    world.records[U0] = next(
        x.record for x in world.decided() if isinstance(x, WriteUnit)
    )  # written, but the unit said no
    world.refused = {U0: "unit_bytes 7; a power of two"}

    assert not [x for x in world.cycle() if isinstance(x, ApplyUnit)]
    assert world.said("b", C.RUNTIME_READY) == ("False", "UnitRefusedSpec")

    world.refused = {}
    assert [x for x in world.cycle() if isinstance(x, ApplyUnit)]


def test_an_edit_of_limits_reaches_the_unit_live() -> None:
    world = settled(an_llm("a"))
    world.edit("a", sharing=SharingPolicy(kv_request=Bytes(512 * MIB)), max_model_len=256)
    taken = world.settle()
    assert kinds(taken) == ["RecordPlan", "WriteUnit", "ApplyUnit"]
    member = world.records[U0].spec.members[0]
    assert member.kv_guaranteed_bytes >= 512 * MIB
    assert member.max_model_len == 256


def test_a_gateway_that_lost_its_table_gets_it_again() -> None:
    world = settled(an_llm("a"))
    world.has_table = {}
    actions = world.cycle()
    assert kinds(actions) == ["PublishRoutes"]
    assert actions[0] == PublishRoutes(table=world.routes, why=actions[0].why)


def test_a_restarted_operator_keeps_the_routes_of_units_it_has_not_heard() -> None:
    world = settled(an_llm("a"), an_llm("b"))
    world.reports.clear()
    assert world.cycle() == ()
    assert [r.served_name for r in world.routes.routes if r.serving] == ["a", "b"]


def test_a_member_that_left_loses_its_route_though_it_still_answers() -> None:
    world = settled(an_llm("a"))
    world.say(U0, a="Draining")
    world.cycle()
    assert [r.reason for r in world.routes.routes] == ["NoReadyUnit"]
    assert world.said("a", C.ROUTE_READY) == ("False", "NoReadyUnit")
    assert world.said("a", C.RUNTIME_READY) == ("False", "Draining")


def test_a_unit_waits_for_its_lost_node_and_is_planned_elsewhere_when_that_is_given_up() -> None:
    world = settled(an_llm("a"), nodes=(slots(1), slots(1, node="node-1")))
    before = dict(world.records)
    world.lost = frozenset({"node-0"})
    assert world.cycle() == ()
    assert world.records == before
    assert world.said("a", C.RUNTIME_READY) == ("False", "NodeLost")
    assert "node-0" in world.condition("a", C.RUNTIME_READY).message

    world.nodes = (slots(1, node="node-1"),)
    world.settle()
    assert [r.group.node for r in world.records.values()] == ["node-1"]
    assert world.said("a", C.RUNTIME_READY) == ("True", "Serving")
