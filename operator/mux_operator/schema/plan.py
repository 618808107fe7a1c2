"""The schema of PlacementPlan: written by the operator, approved or rejected by people."""

from typing import Final

from mux_operator.schema.fields import (
    Rule,
    Schema,
    boolean,
    conditions,
    integer,
    listing,
    quantity,
    record,
    text,
)

FROZEN: Final = "only spec.approval may change, once; a new plan follows new inputs"
_FROZEN_FIELDS: Final = ("current", "proposed", "steps", "predicted", "alternatives", "unplaced",
                         "bound", "notes")  # fmt: skip


def _units() -> Schema:
    member = record({
        "model": text(), "replica": integer(least=0), "tensor": integer(least=1),
        "compute": record({"prefill": integer(), "decode": integer()}),
        "kv": record({"guaranteed": quantity(), "limit": quantity()}),
        "rate": text(longest=32),
    })  # fmt: skip
    unit = record({
        "name": text(), "node": text(), "gpus": listing(integer(least=0), most=8),
        "size": integer(least=1), "members": listing(member, most=64),
    })  # fmt: skip
    return listing(unit, most=256)


def _steps() -> Schema:
    step = record({
        "id": integer(least=0), "kind": text(longest=32), "model": text(), "from": text(),
        "to": text(), "disruptive": boolean(), "predictedUnavailable": text(longest=32),
        "reason": text(longest=64), "message": text(longest=1024),
    })  # fmt: skip
    return listing(step, most=1024)


def _predicted() -> Schema:
    model = record({
        "model": text(), "replicas": integer(least=0), "offered": text(longest=32),
        "served": text(longest=32), "ttft": text(longest=32), "tpot": text(longest=32),
        "attainment": text(longest=32),
        "costs": text(longest=32, doc="What the step times stand on: measured, fitted, data "
                      "sheet."),
    })  # fmt: skip
    return record({"gpus": integer(), "throughput": text(longest=32),
                   "worstRatio": text(longest=32), "attainment": text(longest=32),
                   "models": listing(model, most=256)})  # fmt: skip


def _bound() -> Schema:
    return record({"gpus": integer(), "throughput": text(longest=32), "gap": text(longest=32)})


def _unchanged(field: str) -> Rule:
    return Rule(
        rule=f"has(self.{field}) == has(oldSelf.{field}) && "
        f"(!has(self.{field}) || self.{field} == oldSelf.{field})",
        message=FROZEN, transition=True,
    )  # fmt: skip


def spec() -> Schema:
    refusal = record({"model": text(), "reason": text(longest=64), "message": text(longest=1024)})
    return record(
        {
            "poolRef": record({"name": text(longest=30)}, required=("name",)),
            "inputsHash": text(longest=64),
            "strategy": text(longest=64),
            "current": _units(),
            "proposed": _units(),
            "steps": _steps(),
            "predicted": record({"current": _predicted(), "proposed": _predicted()}),
            "bound": _bound(),
            "notes": listing(text(longest=1024), most=16),
            "alternatives": listing(
                record({"summary": text(longest=1024), "rejectedBecause": text(longest=64),
                        "message": text(longest=1024)}), most=8),
            "unplaced": listing(refusal, most=256),
            "approval": record(
                {"decision": text(enum=("Approve", "Reject"), longest=16)},
                required=("decision",),
                rules=(Rule(rule="self.decision == oldSelf.decision", message=FROZEN,
                            transition=True),),
            ),
        },
        required=("poolRef", "inputsHash"),
        rules=(
            *(_unchanged(field) for field in _FROZEN_FIELDS),
            Rule(rule="self.poolRef == oldSelf.poolRef && self.inputsHash == oldSelf.inputsHash",
                 message=FROZEN, transition=True),
            Rule(rule="has(self.approval) || !has(oldSelf.approval)", message=FROZEN,
                 transition=True),
        ),
    )  # fmt: skip


def status() -> Schema:
    return record({
        "observedGeneration": integer(least=0), "phase": text(longest=32),
        "steps": integer(), "disruptiveSteps": integer(), "gain": text(longest=64),
        "stepStates": listing(
            record({"id": integer(least=0), "state": text(longest=32), "reason": text(longest=64)}),
            most=1024),
        "conditions": conditions(),
    })  # fmt: skip


def columns() -> list[dict[str, object]]:
    return [
        {"name": "Pool", "type": "string", "jsonPath": ".spec.poolRef.name"},
        {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
        {"name": "Gain", "type": "string", "jsonPath": ".status.gain"},
        {"name": "Steps", "type": "integer", "jsonPath": ".status.steps"},
        {"name": "Disruptive", "type": "integer", "jsonPath": ".status.disruptiveSteps"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
