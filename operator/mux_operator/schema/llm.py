"""The schema of LLMDeployment: its fields, defaults, rules and columns."""

from typing import Final

from mux_operator.schema.fields import (
    DECIMAL,
    NAME,
    Rule,
    Schema,
    boolean,
    conditions,
    duration,
    integer,
    listing,
    quantity,
    record,
    text,
)

GPU_SIZES: Final = (1, 2, 4, 8)
NAME_RULE: Final = Rule(
    rule="self.metadata.name.size() <= 40",
    message="metadata.name: at most 40 characters, children add suffixes; shorten it and set "
    "model.servedName",
)
_URI: Final = (
    Rule(
        rule="self.uri.matches('^(hf|pvc|s3|gs|oci)://.+$')",
        local="self.uri.matches('^(file|hf|pvc|s3|gs|oci)://.+$')",
        message="model.uri: use hf://, pvc://, s3://, gs:// or oci://; put local files on a "
        "claim: pvc://claim/path",
    ),
    Rule(
        rule="!self.uri.startsWith('pvc://') || "
        "self.uri.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?$')",
        message="model.uri: pvc:// takes a claim and a folder in it, e.g. pvc://models/llama",
    ),
    Rule(
        rule="!self.uri.matches('/[.][.](/|$)')",
        message="model.uri: must not climb with ..; name the folder itself",
    ),
    Rule(
        rule="!self.uri.startsWith('pvc://') || !(has(self.revision) || has(self.secretRef))",
        message="model.revision and secretRef do not apply to pvc://; remove them",
    ),
    Rule(
        rule="!has(self.revision) || self.uri.startsWith('pvc://') || !self.uri.contains('@')",
        message="model.revision: given twice; remove @... from model.uri",
    ),
)


def _model() -> Schema:
    return record(
        {
            "uri": text(doc="Where the checkpoint is: pvc://claim/folder.", longest=512,
                        shortest=1),
            "revision": text(doc="Commit or tag.", longest=128, shortest=1),
            "servedName": text(doc="Name in requests; the object's name unless set. Unique per "
                               "namespace.", longest=253, shortest=1),
            "secretRef": record(
                {"name": text(pattern=NAME), "key": text(longest=253, shortest=1)},
                doc="Credentials, mounted by the fetch pod only.", required=("name", "key")),
            "dtype": text(doc="Element type to run in; Auto: the checkpoint's.",
                          enum=("Auto", "float32", "bfloat16", "float16"), longest=16,
                          default="Auto"),
            "maxModelLen": integer(doc="Prompt and output together, in tokens; the checkpoint's "
                                   "own limit unless set.", least=1, most=10_000_000),
        },
        required=("uri",), rules=_URI,
    )  # fmt: skip


def _parallelism() -> Schema:
    return record(
        {
            "tensor": integer(doc="GPUs per replica, fixed.", enum=GPU_SIZES),
            "allowedTensor": listing(integer(enum=GPU_SIZES), most=4, least=1, distinct=True,
                                     doc="GPUs per replica the planner may choose among."),
        },
        rules=(Rule(
            rule="!(has(self.tensor) && has(self.allowedTensor))",
            message="parallelism: set tensor (fixed) or allowedTensor (planner chooses), not both",
        ),),
    )  # fmt: skip


def _scaling() -> Schema:
    return record(
        {"minReplicas": integer(least=1, most=64), "maxReplicas": integer(least=1, most=64)},
        required=("minReplicas", "maxReplicas"),
        rules=(Rule(
            rule="self.minReplicas <= self.maxReplicas",
            message="scaling.minReplicas exceeds maxReplicas; lower it",
        ),),
    )  # fmt: skip


def _slo() -> Schema:
    return record(
        {
            "ttft": duration(doc="Time to the first token, e.g. 500ms."),
            "tpot": duration(doc="Time per further token, e.g. 50ms."),
            "objective": quantity(doc="Percent of requests that must meet the targets.",
                                  pattern=DECIMAL, default="99"),
        },
        rules=(
            Rule(rule="has(self.ttft) || has(self.tpot)",
                 message="slo: set ttft, tpot or both, e.g. ttft: 500ms"),
            Rule(rule="!has(self.objective) || (double(string(self.objective)) >= 50.0 && "
                 "double(string(self.objective)) <= 99.99)",
                 message="slo.objective: at least 50 and at most 99.99"),
        ),
    )  # fmt: skip


def _sharing() -> Schema:
    kv_cache = record(
        {"request": quantity(doc="KV memory that is always this model's."),
         "limit": quantity(doc="KV memory it never exceeds by borrowing.")},
        rules=(Rule(
            rule="!(has(self.request) && has(self.limit)) || "
            "!quantity(string(self.request)).isGreaterThan(quantity(string(self.limit)))",
            message="sharing.kvCache.request exceeds limit; lower it",
        ),),
    )  # fmt: skip
    return record(
        {
            "mode": text(enum=("Shared", "Exclusive"), longest=16, default="Shared"),
            "tenantGroup": text(doc="Models of different groups never share a unit.", longest=63),
            "minComputePercent": integer(least=1, most=100),
            "maxComputePercent": integer(least=1, most=100),
            "kvCache": kv_cache,
        },
        rules=(
            Rule(rule="self.mode != 'Exclusive' || "
                 "!(has(self.minComputePercent) || has(self.maxComputePercent))",
                 message="sharing: Exclusive owns the group; remove min/maxComputePercent or use "
                 "Shared"),
            Rule(rule="!(has(self.minComputePercent) && has(self.maxComputePercent)) || "
                 "self.minComputePercent <= self.maxComputePercent",
                 message="sharing.minComputePercent exceeds maxComputePercent; lower it"),
        ),
    )  # fmt: skip


def spec() -> Schema:
    pool_ref = record(
        {"name": text(pattern=NAME, longest=30, shortest=1, default="default")},
        default={"name": "default"},
        rules=(Rule(
            rule="self.name == oldSelf.name", transition=True,
            message="poolRef is immutable; create a second LLMDeployment, wait for Ready, delete "
            "this one",
        ),),
    )  # fmt: skip
    return record(
        {
            "poolRef": pool_ref,
            "model": _model(),
            "engine": record({"type": text(enum=("Auto", "Torch"), longest=16, default="Auto")}),
            "parallelism": _parallelism(),
            "replicas": integer(doc="1 unless set.", least=1, most=64),
            "scaling": _scaling(),
            "workload": record({
                "isl": integer(doc="Mean prompt length in tokens.", least=1, most=10_000_000),
                "osl": integer(doc="Mean output length in tokens.", least=1, most=10_000_000),
                "requestRate": quantity(doc="Requests per second counted on before any are "
                                        "measured, and the floor afterwards."),
            }),
            "slo": _slo(),
            "sharing": _sharing(),
            "priority": integer(least=-1000, most=1000, default=0),
            "rollout": record({"drainTimeout": duration(default="120s")}),
            "placement": record({"movable": boolean(default=True)}),
        },
        required=("model",),
        rules=(Rule(
            rule="!(has(self.replicas) && has(self.scaling))",
            message="replicas: remove it to let scaling apply, or remove scaling",
        ),),
    )  # fmt: skip


def status() -> Schema:
    placement = record({
        "unit": text(), "pod": text(), "node": text(),
        "gpus": listing(integer(least=0), most=8), "tensor": integer(least=1),
        "compute": record({"prefill": integer(), "decode": integer()}),
        "kv": quantity(), "state": text(longest=32), "verified": text(longest=16),
        "reason": text(longest=64),
    })  # fmt: skip
    geometry = record({
        "architecture": text(longest=64), "dtype": text(longest=16),
        **{name: integer() for name in ("layers", "hidden", "intermediate", "heads", "kvHeads",
                                        "headDim", "vocab", "maxModelLen")},
        **{name: boolean() for name in ("tiedEmbeddings", "qkvBias", "qkNorm")},
    })  # fmt: skip
    resolved = record({
        "source": text(longest=768), "weightBytes": integer(), "geometry": geometry,
        "errorReason": text(longest=64), "message": text(longest=4096),
    })  # fmt: skip
    latency = record({"mean": text(longest=32), "p99": text(longest=32)})
    figures = {
        "rate": text(longest=32), "served": text(longest=32), "ttft": latency, "tpot": latency,
        "attainment": text(longest=32),
        "kv": text(longest=32, doc="Bytes of KV held, on the mean."),
    }  # fmt: skip
    return record({
        "observedGeneration": integer(least=0),
        "servedName": text(), "url": text(longest=512), "port": integer(),
        "state": text(longest=32), "unit": text(longest=512),
        "replicas": integer(), "readyReplicas": integer(), "selector": text(longest=512),
        "conditions": conditions(),
        "placements": listing(placement, most=64),
        "demand": record({"rate": text(longest=32), "source": text(longest=32),
                          "asOf": {"type": "string", "format": "date-time"}}),
        "predicted": record(
            {**figures, "costs": text(longest=32, doc="What the step times stand on: measured, "
                                      "fitted, data sheet.")},
            doc="What the plan in force predicts at the rate it was made for."),
        "observed": record(
            {**figures, "asOf": {"type": "string", "format": "date-time"}},
            doc="What was seen, weighted towards the last two minutes; a figure that too few "
            "requests stand behind is not there."),
        "resolved": resolved,
        "previous": resolved,
    })  # fmt: skip


def columns() -> list[dict[str, object]]:
    ready = '.status.conditions[?(@.type=="Ready")]'
    return [
        {"name": "Model", "type": "string", "jsonPath": ".status.servedName"},
        {"name": "Ready", "type": "string", "jsonPath": f"{ready}.status"},
        {"name": "Reason", "type": "string", "jsonPath": f"{ready}.reason"},
        {"name": "State", "type": "string", "jsonPath": ".status.state"},
        {"name": "Rate", "type": "string", "jsonPath": ".status.demand.rate"},
        {"name": "Unit", "type": "string", "jsonPath": ".status.unit"},
        {"name": "URL", "type": "string", "jsonPath": ".status.url", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
