"""Rates move, plans follow: what is changed live, what waits; and noise alone plans nothing."""

import random
from dataclasses import dataclass, field, replace

import pytest

from mux_core.actions import Action, ApplyUnit, RecordPlan, StartUnit, StopUnit
from mux_core.llm import Demand, Slo
from mux_core.placement import GpuNode
from mux_core.planning import StepKind
from mux_core.rates import LASTING_RISE, RateState, Sample, observed, rates
from mux_core.units import GIB, MIB, Bytes, ModelName, NodeName
from mux_core.unitspec import Device
from mux_core.verdicts import ConditionType as C
from world_builders import World, a_pool, an_llm, poisson, settled, slots

LONG = Demand(rate=1.0, prompt_tokens=50, output_tokens=400)
U0, U1 = "pool-r1-u0", "pool-r2-u0"


@dataclass
class Traffic:
    """Poisson arrivals of each model, counted by the gateway; a look every `every` seconds."""

    world: World
    offered: dict[str, float]
    seed: int = 1
    every: int = 5
    counts: dict[ModelName, int] = field(default_factory=dict)
    state: RateState = field(default_factory=RateState)
    process: str = "one"
    taken: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def run(self, seconds: int) -> list[Action]:
        """What is done in so many seconds."""
        taken: list[Action] = []
        for second in range(1, seconds + 1):
            self.world.now += 1.0
            for model, rate in self.offered.items():
                arrived = poisson(self.draw, rate) if rate else 0
                self.counts[ModelName(model)] = self.counts.get(ModelName(model), 0) + arrived
            sample = Sample(source="gateway/gw", start_id=self.process, at=self.world.now,
                            arrivals=dict(self.counts))  # fmt: skip
            self.state = observed(self.state, [sample])
            if second % self.every == 0:
                self.world.demand = dict(
                    rates(self.state, now=self.world.now, live=frozenset({"gateway/gw"}))
                )
                for unit in list(self.world.reports):
                    self.world.say(unit)
                taken += self.world.cycle()
                self.world.pass_time()
        return taken

    def restart(self) -> None:
        """The gateway's process is another one and counts from zero."""
        self.counts, self.process = {}, "two"


def plans(taken: list[Action]) -> list[RecordPlan]:
    return [action for action in taken if isinstance(action, RecordPlan)]


def three(count: int = 1, **world: object) -> World:
    return settled(*(an_llm(name, declared=LONG) for name in "abc"), nodes=(slots(count),), **world)


@pytest.mark.parametrize("offered", [0.2, 1.0, 5.0, 25.0])
def test_an_hour_of_noisy_constant_load_makes_few_plans(offered: float) -> None:
    world = settled(*(an_llm(name) for name in "abc"))
    traffic = Traffic(world, dict.fromkeys("abc", offered))
    traffic.run(300)
    taken = traffic.run(3600)
    assert len(plans(taken)) <= 2
    assert not [x for x in taken if isinstance(x, StartUnit | StopUnit)]


def test_a_tenfold_rate_is_followed_within_two_looks_and_changes_shares_and_quotas_live() -> None:
    world = three()
    traffic = Traffic(world, dict.fromkeys("abc", 1.0))
    traffic.run(300)
    before = {m.model: m for m in world.records[U0].spec.members}
    traffic.offered["b"] = 10.0

    taken = traffic.run(2 * traffic.every)

    assert world.status("b").demand.rate > 2.0
    (plan, *_) = plans(taken)
    assert {step.kind for step in plan.plan.steps} == {StepKind.RESIZE_KV, StepKind.RESIZE_SHARE}
    assert not any(step.disruptive for step in plan.plan.steps)
    assert plan.plan.prediction.models["b"].offered > 2.0
    taken += traffic.run(180)
    after = {m.model: m for m in world.records[U0].spec.members}
    assert after["b"].decode_percent > before["b"].decode_percent
    assert after["a"].decode_percent <= before["a"].decode_percent
    assert after["b"].kv_guaranteed_bytes > before["b"].kv_guaranteed_bytes
    assert after["a"].kv_guaranteed_bytes < before["a"].kv_guaranteed_bytes
    assert sum(m.decode_percent for m in after.values()) <= 100
    assert [x for x in taken if isinstance(x, ApplyUnit)]
    assert list(world.carriers) == [(U0, 1)], "no pod was restarted"


def test_a_gateway_that_restarts_drops_no_rate() -> None:
    world = three()
    traffic = Traffic(world, dict.fromkeys("abc", 20.0))
    traffic.run(300)
    planned = {m.model: m.rate for m in world.records[U0].spec.members}
    traffic.restart()
    for _ in range(12):
        traffic.run(traffic.every)
        assert all(d.rate > 15.0 for d in world.demand.values())
    assert {m.model: m.rate for m in world.records[U0].spec.members} == planned


def crowded(**llm: object) -> World:
    """One model whose KV fills its slot when ten times as much arrives; one slot is free."""
    items = [an_llm(name, declared=LONG, **(llm if name == "b" else {})) for name in "abc"]
    return settled(*items, nodes=(slots(2, 24 * MIB),), weights=dict.fromkeys("abc", MIB))


def test_a_replica_that_fits_free_capacity_starts_and_stays_when_the_load_falls() -> None:
    world = crowded(max_replicas=2)
    assert len(world.records) == 1
    traffic = Traffic(world, dict.fromkeys("abc", 1.0))
    traffic.run(300)
    traffic.offered["b"] = 60.0
    traffic.run(300)
    assert sorted(m for unit in world.placed.values() for m in unit) == ["a", "b", "b", "c"]
    pods = set(world.carriers)
    assert (U0, 1) in pods, "what ran runs on"

    traffic.offered["b"] = 1.0
    taken = traffic.run(1800)

    assert set(world.carriers) == pods
    assert not [x for x in taken if isinstance(x, StopUnit)]
    waiting = plans(taken)[-1]
    assert waiting.waits
    assert any(step.disruptive for step in waiting.plan.steps)
    assert world.said_of_pool(C.PLAN_CURRENT) == ("False", "AwaitingApproval")


def test_what_no_capacity_carries_is_served_as_far_as_it_goes_and_said() -> None:
    world = crowded()
    traffic = Traffic(world, {"a": 1.0, "b": 300.0, "c": 1.0})
    traffic.run(300)
    taken = traffic.run(3600)
    assert len(plans(taken)) <= 2, "overload is steady too"
    assert world.said("b", C.READY) == ("True", "Ready")
    assert "predicted to serve" in world.condition("b", C.PLACED).message


def test_a_service_level_that_nothing_meets_costs_no_place() -> None:
    world = settled(an_llm("a", slo=Slo(ttft_s=1e-6), declared=LONG), an_llm("b"))
    assert world.placed == {U0: ["a", "b"]}
    assert world.said("a", C.READY) == ("True", "Ready")


GPU = GpuNode(name=NodeName("node-0"), gpus=1, memory=Bytes(70 * GIB), gpu="h100")


def test_on_a_gpu_a_share_in_use_stays_and_who_needs_another_waits_for_approval() -> None:
    """A process keeps its MPS percentage for life, so making room for another one restarts it."""
    world = settled(an_llm("a", declared=LONG), pool=a_pool(device=Device.CUDA), nodes=(GPU,))
    before = world.records[U0].spec.members[0]
    world.add(an_llm("b", declared=LONG))

    world.settle()

    assert world.records[U0].spec.members[0].decode_percent == before.decode_percent
    assert world.placed == {U0: ["a"]}
    assert world.said("b", C.PLACED) == ("False", "AwaitingApproval")
    waiting = world.known[1].awaiting
    assert {s.kind for s in waiting.steps if s.disruptive} == {StepKind.RESIZE_SHARE}

    world.nodes = (replace(GPU, gpus=2),)
    world.settle()
    assert sorted(world.placed.values()) == [["a"], ["b"]], "a free GPU disturbs nobody"


def test_a_route_weighs_replicas_by_the_concurrency_that_is_planned_there() -> None:
    world = three(3)
    routes = world.routes
    assert routes is not None
    for name in "abc":
        (record,) = (r for r in world.records.values() if r.spec.member(name))
        member = record.spec.member(name)
        assert member is not None
        assert 0 < member.concurrency != member.rate
        route = routes.route(name)
        assert route is not None
        assert [end.weight for end in route.endpoints] == [member.concurrency]


def test_a_small_rise_that_lasts_is_planned_for() -> None:
    """A sixth more: too little for the mean of half a minute, too much for a unit that is full."""
    world = settled(an_llm("a"))
    traffic = Traffic(world, {"a": 20.0})
    traffic.run(900)
    (before,) = (record.spec.member("a") for record in world.records.values())
    assert before is not None
    # Looks take time of their own in this world: it sees five sixths of what is offered.
    traffic.offered["a"] = before.rate * 7 / 6 * 6 / 5
    traffic.run(1200)
    (after,) = (record.spec.member("a") for record in world.records.values())
    assert after is not None
    offered = before.rate * 7 / 6
    assert offered / (1 + LASTING_RISE) <= after.rate <= 1.07 * offered


@pytest.mark.parametrize(("before", "after"), [(24.0, 6.0), (4.8, 1.2), (12.0, 0.0)])
def test_a_fall_is_planned_for_in_steps_downwards(before: float, after: float) -> None:
    """What still lasts of the load before is not a rise."""
    world = settled(an_llm("a"))
    traffic = Traffic(world, {"a": before})
    traffic.run(900)
    traffic.offered["a"] = after
    planned = []
    for _ in range(60):
        traffic.run(20)
        (member,) = (record.spec.member("a") for record in world.records.values())
        assert member is not None
        planned.append(member.rate)
    assert planned == sorted(planned, reverse=True)
    assert planned[-1] < 0.6 * planned[0]
