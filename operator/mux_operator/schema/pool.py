"""The schema of GPUPool: its fields, defaults, rules and columns."""

from typing import Final

from mux_operator.schema.fields import (
    NAME,
    Rule,
    Schema,
    boolean,
    conditions,
    duration,
    integer,
    listing,
    mapping,
    quantity,
    record,
    text,
)
from mux_operator.schema.llm import GPU_SIZES

NAME_RULE: Final = Rule(
    rule="self.metadata.name.size() <= 30",
    message="metadata.name: at most 30 characters, children add suffixes; shorten it",
)


def _gpu() -> Schema:
    static = record(
        {
            "node": text(pattern=NAME, shortest=1),
            "count": integer(least=1, most=64),
            "memory": quantity(doc="Memory of one slot for weights and KV; 2Gi for device CPU "
                               "unless set."),
        },
        required=("node", "count"),
    )  # fmt: skip
    return record(
        {
            "product": text(doc="GPU type for the cost model.", longest=63),
            "resourceName": text(longest=128, default="nvidia.com/gpu"),
            "max": integer(doc="Most GPUs to use.", least=1, most=100_000),
            "static": listing(static, most=256, keys=("node",),
                              doc="The inventory, without reading nodes."),
        },
        default={},
    )  # fmt: skip


def _toleration() -> Schema:
    return record({
        "key": text(), "operator": text(enum=("Exists", "Equal"), longest=16), "value": text(),
        "effect": text(enum=("NoSchedule", "PreferNoSchedule", "NoExecute"), longest=32),
        "tolerationSeconds": integer(least=0),
    })  # fmt: skip


def _runtime() -> Schema:
    template = record({
        "labels": mapping(text(longest=63), most=32),
        "annotations": mapping(text(longest=1024), most=32),
        "cpu": quantity(), "memory": quantity(),
        "schedulerName": text(), "runtimeClassName": text(), "priorityClassName": text(),
    })  # fmt: skip
    return record(
        {
            "image": text(doc="The chart's image unless set.", longest=512),
            "device": text(enum=("CUDA", "CPU"), longest=16, default="CUDA"),
            "imagePullSecrets": listing(record({"name": text(pattern=NAME)}, required=("name",)),
                                        most=8, keys=("name",)),
            "podTemplate": template,
        },
        default={"device": "CUDA"},
        rules=(Rule(
            rule="self.device == oldSelf.device", transition=True,
            message="runtime.device is immutable; create a new GPUPool",
        ),),
    )  # fmt: skip


def spec() -> Schema:
    return record(
        {
            "mode": text(enum=("RecommendOnly", "Execute"), longest=16, default="RecommendOnly"),
            "nodeSelector": mapping(text(longest=63), most=32),
            "tolerations": listing(_toleration(), most=32),
            "gpu": _gpu(),
            "groupSizes": listing(integer(enum=GPU_SIZES), most=4, least=1, distinct=True),
            "policy": record({
                "allowSharing": boolean(default=True),
                "shareStepPercent": integer(least=1, most=50, default=10),
                "maxOvercommitPercent": integer(least=100, most=800, default=100),
                "maxTensorParallelMembersPerUnit": integer(
                    doc="Members of a unit of several GPUs; 1 until NCCL under MPS is shown safe.",
                    least=1, most=8, default=1),
            }),
            "moves": record({"minGainPercent": integer(least=0, most=100, default=15)}),
            "demand": record({"source": text(enum=("Auto", "RuntimeCounters"), longest=32,
                                             default="Auto")}),
            "runtime": _runtime(),
            "gateway": record({
                "holdTimeout": duration(default="120s"),
                "maxQueuedPerModel": integer(least=0, most=100_000, default=256),
            }),
        },
    )  # fmt: skip


def status() -> Schema:
    unit = record({
        "name": text(), "pod": text(), "node": text(), "gpus": listing(integer(least=0), most=8),
        "models": listing(text(), most=256), "state": text(longest=32),
    })  # fmt: skip
    return record({
        "observedGeneration": integer(least=0),
        "gpus": integer(), "freeGpus": integer(), "unitCount": integer(),
        "inventory": listing(record({"node": text(), "gpus": integer()}), most=1024),
        "units": listing(unit, most=1024),
        "activePlan": text(), "conditions": conditions(),
    })  # fmt: skip


def columns() -> list[dict[str, object]]:
    ready = '.status.conditions[?(@.type=="Ready")]'
    return [
        {"name": "Mode", "type": "string", "jsonPath": ".spec.mode"},
        {"name": "GPUs", "type": "integer", "jsonPath": ".status.gpus"},
        {"name": "Free", "type": "integer", "jsonPath": ".status.freeGpus"},
        {"name": "Units", "type": "integer", "jsonPath": ".status.unitCount"},
        {"name": "Ready", "type": "string", "jsonPath": f"{ready}.status"},
        {"name": "Reason", "type": "string", "jsonPath": f"{ready}.reason"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
