"""Statuses as the API shows them, and back: the other half of the schema; pure.

Reading back is what lets a restarted operator know geometry, ports and condition times without
asking anyone again.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final, TypeVar

from mux_core.actions import RecordPlan
from mux_core.llm import Dtype, ModelGeometry
from mux_core.placement import Unit
from mux_core.planning import MemberEstimate, PlanStep, Prediction
from mux_core.reasons import Reason
from mux_core.status import (
    Condition,
    Figures,
    LlmStatus,
    MeasuredDemand,
    PlacementStatus,
    PoolStatus,
    Resolved,
    Truth,
)
from mux_core.units import Bytes, parse_seconds
from mux_operator import names
from mux_operator.schema import API_VERSION

Document = dict[str, Any]
_Value = TypeVar("_Value")
_Shown = TypeVar("_Shown")

MOST_UNITS: Final = 256
MOST_STEPS: Final = 1024
"""What the schema lets one PlacementPlan hold."""

_GEOMETRY = {
    "architecture": "architecture", "layers": "layers", "hidden": "hidden",
    "intermediate": "intermediate", "heads": "heads", "kvHeads": "kv_heads",
    "headDim": "head_dim", "vocab": "vocab", "maxModelLen": "max_model_len",
    "tiedEmbeddings": "tied_embeddings", "qkvBias": "qkv_bias", "qkNorm": "qk_norm",
}  # fmt: skip


_LATENCIES: Final = {
    "ttft": ("ttft_mean_s", "ttft_p99_s"), "tpot": ("tpot_mean_s", "tpot_p99_s"),
}  # fmt: skip


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def llm_status(model: str, status: LlmStatus) -> Document:
    document: Document = {
        "selector": f"{names.SERVES}{model}=serving",
        "observedGeneration": status.observed_generation,
        "servedName": status.served_name,
        "url": status.url,
        "port": status.port,
        "state": status.state,
        "unit": status.unit,
        "replicas": status.replicas,
        "readyReplicas": status.ready_replicas,
        "conditions": [_condition(item) for item in status.conditions],
        "placements": [_placement(item) for item in status.placements],
    }
    if status.demand is not None:
        document["demand"] = {"rate": _rate(status.demand.rate), "source": status.demand.source,
                              "asOf": timestamp(status.demand.as_of)}  # fmt: skip
    if status.predicted is not None:
        document["predicted"] = figures_document(status.predicted)
    if status.observed is not None:
        document["observed"] = figures_document(status.observed)
    if status.resolved is not None:
        document["resolved"] = _resolved(status.resolved)
    if status.previous is not None:
        document["previous"] = _resolved(status.previous)
    return document


def read_llm_status(document: Mapping[str, Any]) -> LlmStatus:
    """What of a written status decisions need; placements are observed anew."""
    demand = document.get("demand")
    return LlmStatus(
        observed_generation=document.get("observedGeneration", 0),
        served_name=document.get("servedName", ""),
        port=document.get("port", 0),
        conditions=_read_conditions(document),
        demand=None if demand is None else MeasuredDemand(
            rate=float(demand["rate"]), source=demand["source"], as_of=seconds(demand["asOf"])),
        predicted=_read_figures(document.get("predicted")),
        observed=_read_figures(document.get("observed")),
        resolved=_read_resolved(document.get("resolved")),
        previous=_read_resolved(document.get("previous")),
    )  # fmt: skip


def pool_status(status: PoolStatus) -> Document:
    return {
        "observedGeneration": status.observed_generation,
        "gpus": status.gpus,
        "freeGpus": status.free_gpus,
        "unitCount": len(status.units),
        "inventory": [{"node": n, "gpus": count} for n, count in sorted(status.inventory.items())],
        "units": [
            {"name": unit.unit, "pod": unit.pod, "node": unit.node, "gpus": list(unit.gpus),
             "models": list(unit.models), "state": unit.state}
            for unit in status.units
        ],
        "activePlan": status.active_plan,
        "conditions": [_condition(item) for item in status.conditions],
    }  # fmt: skip


def read_pool_status(document: Mapping[str, Any]) -> PoolStatus:
    return PoolStatus(observed_generation=document.get("observedGeneration", 0),
                      conditions=_read_conditions(document))  # fmt: skip


def plan_manifest(action: RecordPlan, *, namespace: str, pool: str, pool_uid: str) -> Document:
    """A PlacementPlan as people read it; what one object cannot hold is cut, largest units last."""
    plan = action.plan
    owner = {"apiVersion": API_VERSION, "kind": "GPUPool", "name": pool, "uid": pool_uid,
             "controller": True, "blockOwnerDeletion": False}  # fmt: skip
    predicted = {"proposed": _prediction(plan.prediction)}
    if action.before is not None:
        predicted["current"] = _prediction(action.before)
    spec: Document = {
        "poolRef": {"name": pool},
        "inputsHash": action.inputs_hash,
        "strategy": plan.strategy,
        "current": [_unit(unit) for unit in action.current.units[:MOST_UNITS]],
        "proposed": [_unit(unit) for unit in plan.proposed.units[:MOST_UNITS]],
        "steps": [_step(number, step) for number, step in enumerate(plan.steps[:MOST_STEPS])],
        "predicted": predicted,
        "alternatives": [
            {"summary": a.summary[:1024], "rejectedBecause": a.rejected_because,
             "message": a.message[:1024]}
            for a in plan.alternatives[:8]
        ],
        "unplaced": [{"model": u.model, "reason": u.reason, "message": u.message[:1024]}
                     for u in plan.unplaced[:MOST_UNITS]],
        "notes": [note[:1024] for note in plan.notes[:16]],
    }  # fmt: skip
    if plan.bound is not None:
        spec["bound"] = {"gpus": plan.bound.gpus, "throughput": _rate(plan.bound.goodput),
                         "gap": f"{plan.bound.gap:.3f}"}  # fmt: skip
    return {
        "apiVersion": API_VERSION,
        "kind": "PlacementPlan",
        "metadata": {
            "name": action.name, "namespace": namespace, "ownerReferences": [owner],
            "labels": {names.PART_OF: names.US, names.MANAGED_BY: names.MANAGER,
                       names.POOL: pool, names.REVISION: str(action.revision)},
        },
        "spec": spec,
    }  # fmt: skip


def plan_status(action: RecordPlan) -> Document:
    """Carried out, or waiting: every step with its state and, while it waits, why."""
    plan, waits = action.plan, action.waits
    state: Document = {"state": "Pending" if waits else "Completed"}
    if waits:
        state["reason"] = str(Reason.AWAITING_APPROVAL)
    document: Document = {
        "phase": names.PLAN_WAITS if waits else names.PLAN_DONE,
        "steps": len(plan.steps),
        "disruptiveSteps": sum(1 for step in plan.steps if step.disruptive),
        "stepStates": [{"id": number, **state} for number in range(min(len(plan.steps),
                                                                       MOST_STEPS))],
    }  # fmt: skip
    if action.before is not None:
        document["gain"] = _gain(action.before, plan.prediction)
    return document


def _gain(before: Prediction, after: Prediction) -> str:
    gpus, goodput = after.gpus_used - before.gpus_used, after.goodput - before.goodput
    return f"{gpus:+d} GPUs, {goodput:+.3g} requests/s"


def _condition(item: Condition) -> Document:
    return {"type": str(item.type), "status": str(item.status), "reason": str(item.reason),
            "message": item.message[:4096], "observedGeneration": item.observed_generation,
            "lastTransitionTime": timestamp(item.since)}  # fmt: skip


def _read_conditions(document: Mapping[str, Any]) -> tuple[Condition, ...]:
    return tuple(
        Condition(type=c["type"], status=Truth(c["status"]), reason=c["reason"],
                  message=c.get("message", ""), since=seconds(c["lastTransitionTime"]),
                  observed_generation=c.get("observedGeneration", 0))
        for c in document.get("conditions", ())
    )  # fmt: skip


def _placement(item: PlacementStatus) -> Document:
    return {
        "unit": item.unit, "pod": item.pod, "node": item.node, "gpus": list(item.gpus),
        "tensor": item.tensor, "kv": item.kv_bytes, "state": item.state, "reason": item.reason,
        "compute": {"prefill": item.prefill_percent, "decode": item.decode_percent},
    }  # fmt: skip


def figures_document(item: Figures) -> Document:
    """What is known of them, as texts with units; what is not known is left out."""
    texts = {
        "rate": _known(item.rate, _rate), "served": _known(item.served, _rate),
        "attainment": _known(item.attainment, "{:.4f}".format),
        "kv": _known(item.kv_bytes, str), "costs": item.costs,
        "asOf": timestamp(item.as_of) if item.as_of else "",
    }  # fmt: skip
    document: Document = {name: text for name, text in texts.items() if text}
    for name, (mean, p99) in _LATENCIES.items():
        shown = {"mean": _known(getattr(item, mean), _milliseconds),
                 "p99": _known(getattr(item, p99), _milliseconds)}  # fmt: skip
        if any(shown.values()):
            document[name] = {stat: text for stat, text in shown.items() if text}
    return document


def _read_figures(document: Mapping[str, Any] | None) -> Figures | None:
    if document is None:
        return None
    rate, served, met, kv = (document.get(name) for name in ("rate", "served", "attainment", "kv"))
    latencies = {
        field: parse_seconds(document[name][stat], subject=f"status: {name}.{stat}")
        for name, fields in _LATENCIES.items()
        for stat, field in zip(("mean", "p99"), fields, strict=True)
        if stat in document.get(name, {})
    }
    return Figures(
        as_of=seconds(document["asOf"]) if "asOf" in document else 0.0,
        rate=_known(rate, float), served=_known(served, float), attainment=_known(met, float),
        kv_bytes=_known(kv, int), costs=document.get("costs", ""), **latencies,
    )  # fmt: skip


def _known(value: _Value | None, show: Callable[[_Value], _Shown]) -> _Shown | None:
    return None if value is None else show(value)


def _milliseconds(value: float) -> str:
    return f"{value * 1000:.1f}ms"


def _resolved(item: Resolved) -> Document:
    document: Document = {"source": item.source, "weightBytes": item.weight_bytes,
                          "errorReason": str(item.error_reason),
                          "message": item.message[:4096]}  # fmt: skip
    if item.geometry is not None:
        shape = {theirs: getattr(item.geometry, ours) for theirs, ours in _GEOMETRY.items()}
        document["geometry"] = {**shape, "dtype": str(item.geometry.dtype)}
    return document


def _read_resolved(document: Mapping[str, Any] | None) -> Resolved | None:
    if document is None:
        return None
    shape = document.get("geometry")
    geometry = None
    if shape is not None:
        fields = {ours: shape[theirs] for theirs, ours in _GEOMETRY.items()}
        geometry = ModelGeometry(**fields, dtype=Dtype(shape["dtype"]))
    return Resolved(
        source=document["source"], geometry=geometry,
        weight_bytes=Bytes(document.get("weightBytes", 0)),
        error_reason=document.get("errorReason", ""), message=document.get("message", ""),
    )  # fmt: skip


def _unit(unit: Unit) -> Document:
    return {
        "name": unit.id, "node": unit.group.node, "gpus": list(unit.group.gpus),
        "size": unit.group.size,
        "members": [
            {"model": m.model, "replica": m.replica, "tensor": m.tensor, "rate": _rate(m.rate),
             "compute": {"prefill": m.share.prefill, "decode": m.share.decode},
             "kv": {"guaranteed": m.kv.guaranteed, "limit": m.kv.limit}}
            for m in unit.members
        ],
    }  # fmt: skip


def _step(number: int, step: PlanStep) -> Document:
    document = {
        "id": number, "kind": str(step.kind), "to": step.unit, "disruptive": step.disruptive,
        "predictedUnavailable": f"{step.predicted_unavailable_s:g}s",
        "reason": str(step.reason), "message": step.message[:1024],
    }  # fmt: skip
    if step.model is not None:
        document["model"] = step.model
    if step.source is not None:
        document["from"] = step.source
    return document


def _prediction(prediction: Prediction) -> Document:
    document: Document = {
        "gpus": prediction.gpus_used, "throughput": _rate(prediction.goodput),
        "worstRatio": f"{prediction.worst_ratio:.3f}",
        "models": [_estimate(model, found)
                   for model, found in sorted(prediction.models.items())[:MOST_UNITS]],
    }  # fmt: skip
    if prediction.attainment is not None:
        document["attainment"] = f"{prediction.attainment:.4f}"
    return document


def _estimate(model: str, found: MemberEstimate) -> Document:
    document = {"model": model, "replicas": found.replicas, "offered": _rate(found.offered),
                "served": _rate(found.served)}  # fmt: skip
    for name, value in (("ttft", found.ttft_mean_s), ("tpot", found.tpot_mean_s)):
        if value is not None and isfinite(value):
            document[name] = _milliseconds(value)
    if found.costs:
        document["costs"] = found.costs
    if found.attainment is not None:
        document["attainment"] = f"{found.attainment:.4f}"
    return document


def _rate(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
