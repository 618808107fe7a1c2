"""The systems that are compared: a placement, a policy and a KV account each.

MuxServe's own systems get its planner, its shares, its KV fractions and its released scheduler;
`spatial-replicas` and ours share one engine, one KV account and one scheduler.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "planner"))

from cases import llm as llm
from cases import nodes
from cases import power_law as power_law
from cases import published as published

from mux_core.estimator.memory import kv_per_token
from mux_core.estimator.unit import GroupKind
from mux_core.llm import Llm, Slo
from mux_core.placement import GpuGroup, KvQuota, Member, Placement, Share, Unit
from mux_core.planners.strategies import make_estimator, make_planner
from mux_core.planning import Objective, PlacementProblem, Plan, PlanningPolicy, best_plan
from mux_core.simulator.kv import KvRule, Llms, estimated_kv, planned_kv
from mux_core.simulator.latency_base import LatencyBase, latency_bases
from mux_core.units import Bytes, Percent, UnitId

OURS = "ours"
ATTAINMENT = "ours-attainment"
SEARCH_STEPS = 100_000
PLANNED_SCALE = 2.0
"""SLO scale that `ours-attainment` plans for: the tightest that is compared."""

WHOLE = Share(prefill=Percent(100), decode=Percent(100))
SPATIAL_GPUS = {"llama-7b": 1, "llama-13b": 1, "llama-30b": 4, "llama-65b": 8}
SPATIAL_GPUS_CHAT = {"llama-7b": 1, "llama-13b": 2, "llama-30b": 2, "llama-65b": 4}
SPATIAL_GPUS_HOT = {"llm-1": 1, "llm-3": 1}
"""The two hottest 13B of ChatLMSYS get one GPU each."""
SPATIAL_KV = {"llama-7b": 0.5, "llama-13b": 0.5, "llama-30b": 0.5, "llama-65b": 0.5}
SPATIAL_KV_CHAT = {"llama-7b": 0.65, "llama-13b": 0.5, "llama-30b": 0.375, "llama-65b": 0.375}


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One way to serve a workload. `sm_percent`: another bound than our policy's own on the sum
    of SM shares in flight."""

    name: str
    problem: PlacementProblem
    placement: Placement
    policy: str
    kv: KvRule = estimated_kv
    plan: Plan | None = None
    sm_percent: int | None = None


def make_system(name: str, llms: Sequence[Llm], *, gpus: int | None = None) -> System:
    """The system of that name for these LLMs on 4 nodes of 8 GPUs, `gpus` of them usable."""
    chat = len(llms) == 16
    match name:
        case "muxserve":
            return _planned(name, llms, "muxserve-released", "adbs-released", kv=planned_kv)
        case "muxserve-fixed":
            return _planned(name, llms, "muxserve-fixed", "adbs-fixed", kv=planned_kv)
        case "spatial":
            spread = [replace(llm, spatial_gpus=_spatial_gpus(llm, chat)) for llm in llms]
            fractions = SPATIAL_KV_CHAT if chat else SPATIAL_KV
            return _planned(name, spread, "spatial", "adbs-released", kv=_fraction(fractions))
        case "spatial-replicas":
            found = _planned(name, llms, name, "adbs", gpus=gpus)
            return replace(found, placement=with_share(found.placement, WHOLE))
        case "ours" | "ours-attainment":
            return _ours(name, llms, gpus)
    raise SystemExit(f"system {name}: unknown")


def unit_system(
    name: str,
    llms: Sequence[Llm],
    shares: Sequence[Share],
    policy: str,
    *,
    gpus: int = 4,
    kv_bytes: float,
    quotas: bool = False,
    sm_percent: int | None = None,
) -> System:
    """All LLMs on one unit. `quotas`: each owns KV in proportion to rate times bytes per token,
    as MuxServe's token blocks are dealt, and borrows none; else they share all of it."""
    weights = [one.demand.rate * kv_per_token(one) for one in llms]
    total = int(kv_bytes)
    members = []
    for one, share, weight in zip(llms, shares, weights, strict=True):
        own = Bytes(int(total * weight / sum(weights)) if quotas else 0)
        members.append(
            Member(
                model=one.name,
                replica=0,
                tensor=gpus,
                share=share,
                kv=KvQuota(guaranteed=own, limit=own if quotas else Bytes(total)),
                rate=one.demand.rate,
            )
        )
    cluster = nodes(1)
    group = GpuGroup(node=cluster[0].name, gpus=tuple(range(gpus)))
    unit = Unit(id=UnitId("u0"), group=group, members=())
    return System(
        name=name,
        problem=PlacementProblem(now=0.0, nodes=cluster, llms=tuple(llms)),
        placement=Placement(units=(unit.with_members(tuple(members)),)),
        policy=policy,
        kv=lambda unit, kind, llms: kv_bytes,
        sm_percent=sm_percent,
    )


def share_of(prefill: int, decode: int) -> Share:
    return Share(prefill=Percent(prefill), decode=Percent(decode))


def with_share(placement: Placement, share: Share) -> Placement:
    """The placement with every member at one share."""
    units = (
        unit.with_members(tuple(replace(member, share=share) for member in unit.members))
        for unit in placement.units
    )
    return Placement(units=tuple(units))


def _planned(
    name: str,
    llms: Sequence[Llm],
    strategy: str,
    policy: str,
    *,
    kv: KvRule = estimated_kv,
    gpus: int | None = None,
    objective: Objective = Objective.GPUS,
    estimator: str = "muxserve",
) -> System:
    problem = PlacementProblem(
        now=0.0,
        nodes=nodes(),
        llms=tuple(llms),
        policy=PlanningPolicy(objective=objective, gpu_limit=gpus),
    )
    planner = make_planner(strategy, estimator=make_estimator(estimator))
    plan = best_plan(planner, problem, max_steps=SEARCH_STEPS)
    return System(
        name=name, problem=problem, placement=plan.proposed, policy=policy, kv=kv, plan=plan
    )


def _ours(name: str, llms: Sequence[Llm], gpus: int | None) -> System:
    """The fewest GPUs that carry the demand; for attainment, all `gpus` at a tight target.

    Only the planner hears of the target: what arrives is judged at every scale alike.
    """
    if name == OURS:
        return _planned(name, llms, "default", "adbs", gpus=gpus, estimator="default")
    bases = latency_bases(llms, nodes(), {})
    tight = [replace(one, slo=_target(one, bases[one.name])) for one in llms]
    found = _planned(
        name, tight, "default", "adbs", gpus=gpus, estimator="default",
        objective=Objective.ATTAINMENT,
    )  # fmt: skip
    return replace(found, problem=replace(found.problem, llms=tuple(llms)))


def _target(llm: Llm, base: LatencyBase) -> Slo:
    prompt = np.array([llm.demand.prompt_tokens])
    return Slo(ttft_s=PLANNED_SCALE * float(base.ttft(prompt)[0]), tpot_s=PLANNED_SCALE * base.tpot)


def _spatial_gpus(llm: Llm, chat: bool) -> int:
    if not chat:
        return SPATIAL_GPUS[llm.profile or ""]
    return SPATIAL_GPUS_HOT.get(llm.name, SPATIAL_GPUS_CHAT[llm.profile or ""])


def _fraction(fractions: Mapping[str, float]) -> KvRule:
    """KV as a fraction of the GPUs' memory, by the size of the one LLM on them."""

    def rule(unit: Unit, kind: GroupKind, llms: Llms) -> float:
        (member,) = unit.members
        return fractions[llms[member.model].profile or ""] * kind.gpus * kind.memory

    return rule
