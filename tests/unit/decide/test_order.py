"""The same world gives the same actions in the same order, whoever lists it and how."""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mux_core.actions import StartUnit, WriteUnit
from mux_core.llm import SharingPolicy
from mux_core.placement import GpuNode
from mux_core.pool_verdicts import Outcome
from mux_core.problem import question
from mux_core.units import GIB, MIB
from mux_core.verdicts import statuses
from world_builders import World, a_world, an_llm, chosen, declared, settled, slots


def crowded(seed: int) -> World:
    """Models in every stage: new, read, served, broken, in conflict, on their way out."""
    rng = random.Random(seed)
    world = a_world(nodes=(slots(2, node="n0"), slots(1, node="n1"), slots(2, 4 * GIB, "n2")))
    for number in range(8):
        sharing = SharingPolicy(exclusive=rng.random() < 0.2, tenant_group=rng.choice(["", "x"]))
        world.add(an_llm(f"m{number}", created=float(number % 3), sharing=sharing,
                         claim=rng.choice(["one", "two"]), priority=rng.choice([0, 5]),
                         served_name=f"name-{number % 6}",
                         declared=declared(rng.choice([0.0, 2.0, 9.0]))))  # fmt: skip
        world.weights[f"m{number}"] = rng.choice([64, 900, 1700]) * MIB
    world.broken["m1"] = ("CorruptCheckpoint", "cut")
    for _ in range(rng.randrange(7)):
        world.cycle()
        world.pass_time()
    del world.llms[f"m{rng.randrange(8)}"]
    if world.carriers and rng.random() < 0.5:
        world.die(min(record.unit for record in world.records.values()
                      if (record.unit, record.spec.incarnation) in world.carriers))  # fmt: skip
    return world


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), shuffle=st.integers(0, 10_000))
def test_the_order_in_which_things_are_listed_means_nothing(seed: int, shuffle: int) -> None:
    world = crowded(seed)
    assert world.decided(order=random.Random(shuffle)) == world.decided()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_what_was_done_is_found_done(seed: int) -> None:
    world = crowded(seed)
    world.settle(looks=40)
    assert world.cycle() == ()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), shuffle=st.integers(0, 10_000))
def test_statuses_do_not_depend_on_order_either(seed: int, shuffle: int) -> None:
    world = crowded(seed)
    reports = []
    for order in (None, random.Random(shuffle)):
        snapshot = world.snapshot(order=order)
        asked = question(snapshot)
        choice = chosen(asked.problem)
        reports.append(statuses(Outcome(snapshot=snapshot, asked=asked, choice=choice)))
    assert reports[0] == reports[1]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), shuffle=st.integers(0, 10_000))
def test_the_hash_of_the_question_is_of_its_inputs_alone(seed: int, shuffle: int) -> None:
    world = crowded(seed)
    first = question(world.snapshot())
    world.now += 0.5
    second = question(world.snapshot(order=random.Random(shuffle)))
    assert first.inputs_hash == second.inputs_hash
    world.nodes = (*world.nodes, slots(1, node="new"))
    assert question(world.snapshot()).inputs_hash != first.inputs_hash


def test_an_operator_that_dies_between_two_actions_is_continued_not_repeated() -> None:
    """Whatever prefix of the actions was done, the next looks end in the same world."""
    whole = a_world(an_llm("a"), an_llm("b"), nodes=(slots(2),))
    whole.cycle()
    whole.pass_time()
    count = len(whole.decided())
    whole.settle()
    for done in range(count):
        world = a_world(an_llm("a"), an_llm("b"), nodes=(slots(2),))
        world.cycle()
        world.pass_time()
        for action in world.decided()[:done]:
            world.do(action)
        world.settle()
        assert world.placed == whole.placed, f"names and all, after {done} actions"
        assert len(world.carriers) == 1


def test_a_record_is_written_before_its_unit_is_started() -> None:
    alone = SharingPolicy(exclusive=True)
    world = a_world(an_llm("a", sharing=alone), an_llm("b", sharing=alone), nodes=(slots(2),))
    world.cycle()
    world.pass_time()
    written: set[str] = set()
    for action in world.decided():
        if isinstance(action, WriteUnit):
            written.add(action.record.unit)
        if isinstance(action, StartUnit):
            assert action.record.unit in written


def test_names_of_units_follow_the_plan_that_made_them() -> None:
    world = settled(an_llm("a"), nodes=(slots(3),))
    world.add(an_llm("b", sharing=SharingPolicy(exclusive=True)))
    world.settle()
    assert list(world.records) == ["pool-r1-u0", "pool-r2-u0"]
    assert [plan.name for plan in world.plans] == ["pool-r1", "pool-r2"]
    assert {c.name for c in world.carriers.values()} == {"pool-r1-u0-1", "pool-r2-u0-1"}


def test_ports_are_unique_and_kept_for_life() -> None:
    world = settled(an_llm("a"), an_llm("b"))
    world.add(an_llm("0-first"))
    world.settle()
    ports = {name: world.status(name).port for name in ("a", "b", "0-first")}
    assert ports == {"a": 10000, "b": 10001, "0-first": 10002}
    del world.llms["a"]
    world.settle()
    assert world.status("b").port == 10001


def test_a_node_that_is_gone_takes_its_unit_along_and_the_model_goes_elsewhere() -> None:
    nodes: tuple[GpuNode, ...] = (slots(1, node="n0"), slots(1, node="n1"))
    world = settled(an_llm("a"), nodes=nodes)
    world.nodes = nodes[1:]
    world.settle()
    (record,) = world.records.values()
    assert record.group.node == "n1"
    assert record.unit != "pool-r1-u0"
    assert record.spec.members[0].model == "a"
