"""A plan as the one JSON object that scripts depend on, and a placement read back from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mux_core.costmodel.sources import Source
from mux_core.errors import InvariantError, SpecError
from mux_core.placement import GpuGroup, KvQuota, Member, Placement, Share, Unit
from mux_core.planning import MemberEstimate, PlacementProblem, Plan
from mux_core.units import Bytes, ModelName, NodeName, Percent, UnitId


def score(models: Mapping[ModelName, MemberEstimate]) -> float:
    """MuxServe's score: sum(r * t) / sum(r), with t as the strategy states it."""
    offered = sum(found.offered for found in models.values())
    weighted = sum(found.offered * found.served for found in models.values())
    return weighted / offered if offered else 0.0


def plan_document(
    plan: Plan,
    problem: PlacementProblem,
    *,
    estimator: str,
    seconds: float,
    deadline_hit: bool,
    sources: Mapping[ModelName, Source] | None = None,
) -> dict[str, Any]:
    """The object `muxserve plan -o json` prints. `sources`: what each model's costs stand on."""
    costs = {name: str(source) for name, source in (sources or {}).items()}
    prediction = plan.prediction
    bound = plan.bound
    return {
        "strategy": plan.strategy,
        "estimator": estimator,
        "score": score(prediction.models),
        "goodput": prediction.goodput,
        "worst_ratio": prediction.worst_ratio,
        "attainment": prediction.attainment,
        "gpus_used": prediction.gpus_used,
        "gpus_total": _usable(problem),
        "bound": None
        if bound is None
        else {"gpus": bound.gpus, "goodput": bound.goodput, "gap": bound.gap},
        "seconds": seconds,
        "deadline_hit": deadline_hit,
        "from_current": bool(problem.current.units),
        "constraints": _constraints(problem, estimator),
        "models": {
            llm.name: _model(prediction.models[llm.name]) | {"costs": costs.get(llm.name)}
            for llm in problem.llms
            if llm.name in prediction.models
        },
        "units": units_document(plan.proposed),
        "unplaced": [
            {"model": found.model, "reason": str(found.reason), "message": found.message}
            for found in plan.unplaced
        ],
        "alternatives": [
            {
                "summary": found.summary,
                "rejected_because": str(found.rejected_because),
                "message": found.message,
            }
            for found in plan.alternatives
        ],
        "moves": [
            {
                "kind": str(step.kind),
                "reason": str(step.reason),
                "unit": step.unit,
                "model": step.model,
                "from": step.source,
                "disruptive": step.disruptive,
                "message": step.message,
            }
            for step in plan.steps
        ],
        "notes": list(plan.notes),
    }


def _usable(problem: PlacementProblem) -> int:
    total = sum(node.gpus for node in problem.nodes)
    limit = problem.policy.gpu_limit
    return total if limit is None else min(total, limit)


def _constraints(problem: PlacementProblem, estimator: str) -> dict[str, Any]:
    policy = problem.policy
    return {
        "objective": str(policy.objective),
        "headroom": policy.headroom if estimator == "default" else None,
        "maxTensorParallelMembersPerUnit": policy.max_tensor_members,
        "gpu_limit": policy.gpu_limit,
        "group_sizes": list(policy.group_sizes),
        "allow_sharing": policy.allow_sharing,
    }


def _model(found: MemberEstimate) -> dict[str, Any]:
    return {
        "offered": found.offered,
        "served": found.served,
        "ratio": found.ratio,
        "replicas": found.replicas,
        "ttft_ms": _milliseconds(found.ttft_mean_s),
        "tpot_ms": _milliseconds(found.tpot_mean_s),
        "ttft_p99_ms": _milliseconds(found.ttft_p99_s),
        "tpot_p99_ms": _milliseconds(found.tpot_p99_s),
        "attainment": found.attainment,
        "kv_bytes": found.kv_bytes,
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None or seconds == float("inf") else seconds * 1000


def units_document(placement: Placement) -> list[dict[str, Any]]:
    """The units in the order of the cluster's GPUs."""
    ordered = sorted(placement.units, key=lambda unit: (unit.group.node, unit.group.gpus))
    return [_unit(unit) for unit in ordered]


def _unit(unit: Unit) -> dict[str, Any]:
    return {
        "id": unit.id,
        "node": unit.group.node,
        "gpus": list(unit.group.gpus),
        "members": [
            {
                "model": member.model,
                "replica": member.replica,
                "tensor": member.tensor,
                "gpus": list(unit.group.gpus),
                "rate": member.rate,
                "concurrency": member.concurrency,
                "prefill_percent": member.share.prefill,
                "decode_percent": member.share.decode,
                "kv_bytes": member.kv.guaranteed,
                "kv_limit_bytes": member.kv.limit,
            }
            for member in unit.members
        ],
    }


def read_placement(path: Path, *, flag: str) -> Placement:
    """The placement that `muxserve plan -o json` wrote into `path`; `flag` named it. SpecError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        units = [_read_unit(unit, index) for index, unit in enumerate(document["units"])]
        return Placement(units=tuple(sorted(units, key=lambda unit: unit.id)))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, InvariantError) as error:
        raise SpecError(f"{flag} {path}: is not a plan ({type(error).__name__}: {error}); give "
                        "what `muxserve plan -o json` printed") from error  # fmt: skip


def _read_unit(unit: Mapping[str, Any], index: int) -> Unit:
    members = [
        Member(
            model=ModelName(member["model"]),
            replica=int(member["replica"]),
            tensor=int(member["tensor"]),
            share=Share(
                prefill=Percent(member["prefill_percent"]),
                decode=Percent(member["decode_percent"]),
            ),
            kv=KvQuota(
                guaranteed=Bytes(member["kv_bytes"]),
                limit=Bytes(member.get("kv_limit_bytes", member["kv_bytes"])),
            ),
            rate=float(member["rate"]),
            concurrency=float(member.get("concurrency", 0.0)),
        )
        for member in unit["members"]
    ]
    return Unit(
        id=UnitId(str(unit.get("id", f"u{index}"))),
        group=GpuGroup(node=NodeName(unit["node"]), gpus=tuple(unit["gpus"])),
        members=tuple(sorted(members, key=lambda member: (member.model, member.replica))),
    )
