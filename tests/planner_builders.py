"""Builders for planner tests: the published cases, and small clusters."""

import csv
import json
from pathlib import Path

import pytest

from mux_core.data import read_text
from mux_core.estimator.muxserve import reference_model
from mux_core.estimator.reference import ReferenceUnits
from mux_core.llm import Demand, Llm, SharingPolicy, Slo
from mux_core.placement import GpuNode
from mux_core.planners.strategies import make_planner
from mux_core.planning import PlacementProblem, Plan, PlanningPolicy, best_plan
from mux_core.units import GIB, Bytes, ModelName, NodeName

PROFILES = ("llama-7b",) * 12 + ("llama-13b",) * 4 + ("llama-30b",) * 2 + ("llama-65b",)
ESTIMATES = Path(__file__).parent / "unit" / "planner" / "published_estimates.csv"


def an_llm(
    name: str,
    profile: str = "llama-7b",
    rate: float = 1.0,
    *,
    slo: Slo | None = None,
    sharing: SharingPolicy | None = None,
    allowed_tensor: tuple[int, ...] = (),
    min_replicas: int = 1,
    max_replicas: int = 99,
    priority: int = 0,
    movable: bool = True,
) -> Llm:
    return Llm(
        name=ModelName(name),
        profile=profile,
        weight_bytes=Bytes(int(reference_model(profile).weights_gb * GIB)),
        demand=Demand(rate=rate),
        slo=slo,
        sharing=sharing or SharingPolicy(),
        allowed_tensor=allowed_tensor,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        priority=priority,
        movable=movable,
    )


def nodes(count: int = 4, gpus: int = 8, gpu: str = "a100-80gb") -> tuple[GpuNode, ...]:
    return tuple(
        GpuNode(name=NodeName(f"node-{i}"), gpus=gpus, memory=Bytes(80 * GIB), gpu=gpu)
        for i in range(count)
    )


def synthetic(alpha: float, scale: float) -> tuple[Llm, ...]:
    return tuple(
        an_llm(f"llm-{i}", profile, 40 * scale * (i + 1) ** -alpha)
        for i, profile in enumerate(PROFILES)
    )


def chatlmsys(density: float) -> tuple[Llm, ...]:
    trace = json.loads(read_text("chatlmsys.json"))
    window = trace["trace_window_s"]
    return tuple(
        an_llm(model["name"], model["profile"], (model["requests"] + 1) / window * density)
        for model in trace["models"]
    )


def published_cases() -> dict[str, tuple[Llm, ...]]:
    cases = {
        f"synthetic_alpha{alpha}_scale{scale}": synthetic(alpha, scale)
        for alpha in (2.1, 0.9)
        for scale in (0.5, 0.75, 1.0, 1.25)
    }
    return cases | {f"chatlmsys_condense{d}": chatlmsys(d) for d in (500, 800, 2000)}


def published_estimates() -> dict[str, dict[str, str]]:
    with ESTIMATES.open() as lines:
        return {row["workload"]: row for row in csv.DictReader(lines)}


def a_problem(
    llms: tuple[Llm, ...],
    *,
    cluster: tuple[GpuNode, ...] | None = None,
    policy: PlanningPolicy | None = None,
) -> PlacementProblem:
    return PlacementProblem(
        now=0.0,
        nodes=nodes() if cluster is None else cluster,
        llms=llms,
        policy=policy or PlanningPolicy(),
    )


def check_legal(problem: PlacementProblem, plan: Plan) -> None:
    """Every rule that no plan may break, whatever was asked."""
    llms = {llm.name: llm for llm in problem.llms}
    memory = {node.name: node.memory for node in problem.nodes}
    slots = {node.name: node.gpus for node in problem.nodes}
    taken: set[tuple[str, int]] = set()
    sent: dict[ModelName, list[float]] = {}
    for unit in plan.proposed.units:
        assert unit.members
        for gpu in unit.group.gpus:
            assert gpu < slots[unit.group.node]
            assert (unit.group.node, gpu) not in taken
            taken.add((unit.group.node, gpu))
        assert sum(member.share.decode for member in unit.members) <= 100
        held = sum(llms[m.model].weight_bytes + m.kv.guaranteed for m in unit.members)
        assert held <= memory[unit.group.node] * unit.group.size
        assert len({llms[m.model].sharing.tenant_group for m in unit.members}) == 1
        if any(llms[m.model].sharing.exclusive for m in unit.members):
            assert len(unit.members) == 1
        limit = problem.policy.max_tensor_members
        if limit is not None and unit.group.size > 1:
            assert len(unit.members) <= limit
        for member in unit.members:
            llm = llms[member.model]
            assert member.tensor == unit.group.size
            assert not llm.allowed_tensor or member.tensor in llm.allowed_tensor
            assert member.share.decode <= llm.sharing.max_percent
            assert member.share.decode >= (llm.sharing.min_percent or 1)
            assert member.kv.guaranteed >= llm.sharing.kv_request
            sent.setdefault(member.model, []).append(member.rate)
    for name, rates in sent.items():
        assert sum(rates) <= max(llms[name].demand.rate, 1e-3) * (1 + 1e-9)
        assert len(rates) <= llms[name].max_replicas
    limit = problem.policy.gpu_limit
    assert limit is None or len(taken) <= limit


PUBLISHED_SYSTEMS = {
    "muxserve-released": "released",
    "muxserve-fixed": "index_fixed",
    "spatial-replicas": "replicas",
}
"""Strategies with published estimates, by their column there."""


def assert_published(case, strategy):
    """The strategy's plan of a published case has the published figures."""
    planner = make_planner(strategy, estimator=ReferenceUnits())
    found = best_plan(planner, a_problem(published_cases()[case])).prediction
    row, column = published_estimates()[case], PUBLISHED_SYSTEMS[strategy]
    assert _score(found.models) == pytest.approx(float(row[f"{column}_score"]), abs=1e-4)
    assert found.goodput == pytest.approx(float(row[f"{column}_goodput_req_s"]), abs=0.005)
    assert found.worst_ratio == pytest.approx(float(row[f"{column}_min_ratio"]), abs=5e-4)
    assert found.gpus_used == int(row[f"{column}_gpus"])


def _score(models):
    offered = sum(m.offered for m in models.values())
    return sum(m.offered * m.served for m in models.values()) / offered
