"""Whatever happens to rates and specs: a plan that is carried out only adds, fits, and settles."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mux_core.footprint import kv_floor, weight_floor
from mux_core.llm import Demand, Llm, SharingPolicy, Slo
from mux_core.placement import GpuNode, Placement
from mux_core.planning import PlacementProblem, Plan, PlanningPolicy
from mux_core.units import MIB, Bytes, ModelName, NodeName, Percent
from world_builders import chosen, shape

QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
SHAPE = shape(max_model_len=256)

rates = st.sampled_from([0.0, 0.2, 1.0, 7.0, 50.0, 400.0])
sharings = st.builds(
    SharingPolicy,
    exclusive=st.sampled_from([False, False, False, True]),
    tenant_group=st.sampled_from(["", "", "x"]),
    min_percent=st.sampled_from([None, None, Percent(20)]),
    kv_request=st.sampled_from([Bytes(0), Bytes(0), Bytes(2 * MIB)]),
)


@st.composite
def asked(draw: st.DrawFn, name: str) -> Llm:
    least = draw(st.sampled_from([1, 1, 2]))
    return Llm(
        name=ModelName(name), geometry=SHAPE, weight_bytes=Bytes(draw(st.integers(1, 6)) * MIB),
        demand=Demand(rate=draw(rates), prompt_tokens=40, output_tokens=200),
        sharing=draw(sharings), min_replicas=least,
        max_replicas=least + draw(st.sampled_from([0, 0, 2])),
        slo=draw(st.sampled_from([None, None, Slo(tpot_s=1e-5)])),
        priority=draw(st.integers(0, 1)),
    )  # fmt: skip


@st.composite
def problems(draw: st.DrawFn) -> list[PlacementProblem]:
    """The same cluster three times; rates and a spec change in between."""
    llms = [draw(asked(f"m{number}")) for number in range(draw(st.integers(1, 7)))]
    nodes = tuple(
        GpuNode(name=NodeName(f"n{number}"), gpus=1, memory=Bytes(memory * MIB), gpu="cpu")
        for number, memory in enumerate(draw(st.lists(st.sampled_from([12, 24]), min_size=1,
                                                      max_size=4)))
    )  # fmt: skip
    policy = PlanningPolicy(best_effort=True, group_sizes=(1,), max_tensor_members=1)
    found = []
    for _ in range(3):
        found.append(PlacementProblem(now=0.0, nodes=nodes, llms=tuple(llms), policy=policy))
        moved = draw(st.integers(0, len(llms) - 1))
        weights = llms[moved].weight_bytes
        llms[moved] = replace(draw(asked(llms[moved].name)), weight_bytes=weights)
    return found


def check_fits(problem: PlacementProblem, placement: Placement) -> None:
    llms = {llm.name: llm for llm in problem.llms}
    memory = {node.name: node.memory for node in problem.nodes}
    taken = [(unit.group.node, gpu) for unit in placement.units for gpu in unit.group.gpus]
    assert len(set(taken)) == len(taken)
    for unit in placement.units:
        members = [(member, llms[member.model]) for member in unit.members]
        held = sum(weight_floor(llm, tensor=1) + member.kv.guaranteed for member, llm in members)
        assert held <= memory[unit.group.node]
        assert sum(member.share.decode for member, _ in members) <= 100


def check_adds(problem: PlacementProblem, plan: Plan) -> None:
    """Whoever runs stays, unless there are more of it than it may have."""
    most = {llm.name: llm.max_replicas for llm in problem.llms}
    for unit, member in problem.current.members():
        kept = plan.proposed.unit(unit.id)
        if kept is None or member.model not in kept.models:
            replicas = sum(1 for _, m in plan.proposed.members() if m.model == member.model)
            assert replicas == most[member.model]
    assert not any(step.disruptive for step in plan.steps)


@QUICK
@given(steps=problems())
def test_it_adds_fits_and_is_the_same_when_asked_again(steps: list[PlacementProblem]) -> None:
    current = Placement()
    for problem in steps:
        problem = replace(problem, current=current)
        plan = chosen(problem).plan
        check_adds(problem, plan)
        check_fits(problem, plan.proposed)
        again = chosen(replace(problem, current=plan.proposed)).plan
        assert again.steps == ()
        assert again.proposed == plan.proposed
        current = plan.proposed


def test_who_is_refused_even_alone_sends_nobody_elsewhere() -> None:
    """It was placed by memory; its neighbour's demand does not look for another unit for that."""
    idle = Llm(name=ModelName("other"), geometry=SHAPE, weight_bytes=Bytes(MIB), max_replicas=3,
               demand=Demand(rate=0.0))  # fmt: skip
    hopeless = replace(idle, name=ModelName("hopeless"), slo=Slo(tpot_s=1e-5), max_replicas=1)
    nodes = tuple(GpuNode(name=NodeName(f"n{number}"), gpus=1, memory=Bytes(12 * MIB), gpu="cpu")
                  for number in range(2))  # fmt: skip
    policy = PlanningPolicy(best_effort=True, group_sizes=(1,), max_tensor_members=1)
    problem = PlacementProblem(now=0.0, nodes=nodes, llms=(hopeless, idle), policy=policy)
    first = chosen(problem).plan.proposed
    assert [unit.models for unit in first.units] == [{"hopeless", "other"}]
    assert chosen(replace(problem, current=first)).plan.steps == ()


@settings(QUICK, max_examples=50)
@given(steps=problems())
def test_who_has_no_place_is_told_why_and_could_have_had_none(
    steps: list[PlacementProblem],
) -> None:
    problem = steps[0]
    plan = chosen(problem).plan
    missing = {refusal.model for refusal in plan.unplaced}
    for llm in problem.llms:
        placed = [unit for unit in plan.proposed.units if llm.name in unit.models]
        assert (len(placed) < llm.min_replicas) == (llm.name in missing)
        need = weight_floor(llm, tensor=1) + kv_floor(llm, tensor=1)
        used = {unit.group.node for unit in plan.proposed.units}
        free = [node for node in problem.nodes if node.name not in used and node.memory >= need]
        assert not (free and llm.name in missing), "a free slot that holds it"
