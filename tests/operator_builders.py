"""Manifests and snapshots for tests of the operator."""

from typing import Any

from mux_operator.schema import API_VERSION

Manifest = dict[str, Any]


def llm_manifest(name: str = "chat", **spec: Any) -> Manifest:
    """A valid LLMDeployment; `spec` overrides its fields."""
    return {
        "apiVersion": API_VERSION,
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"uri": f"pvc://models/{name}"}, **spec},
    }


def pool_manifest(name: str = "default", **spec: Any) -> Manifest:
    """A GPUPool of one CPU slot; `spec` overrides its fields."""
    wanted = {
        "runtime": {"device": "CPU"},
        "gpu": {"static": [{"node": "node-0", "count": 1}]},
        **spec,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "GPUPool",
        "metadata": {"name": name},
        "spec": wanted,
    }


# (what is wrong, the manifest, what every validator must say)
WRONG: tuple[tuple[str, Manifest, str], ...] = (
    ("unknown field", llm_manifest(modle={}), 'unknown field "spec.modle"'),
    ("unknown field, deep", llm_manifest(model={"uri": "pvc://a/b", "reversion": "x"}),
     'unknown field "spec.model.reversion"'),
    ("no model", {**llm_manifest(), "spec": {}}, "spec.model: Required value"),
    ("no uri", llm_manifest(model={}), "spec.model.uri: Required value"),
    ("name too long", llm_manifest("a" * 41),
     "metadata.name: at most 40 characters, children add suffixes; shorten it and set "
     "model.servedName"),
    ("pool name too long", pool_manifest("a" * 31),
     "metadata.name: at most 30 characters, children add suffixes; shorten it"),
    ("unknown scheme", llm_manifest(model={"uri": "ftp://a/b"}),
     "model.uri: use hf://, pvc://, s3://, gs:// or oci://; put local files on a claim: "
     "pvc://claim/path"),
    ("no claim", llm_manifest(model={"uri": "pvc:///a"}),
     "model.uri: pvc:// takes a claim and a folder in it, e.g. pvc://models/llama"),
    ("climbing path", llm_manifest(model={"uri": "pvc://a/../b"}),
     "model.uri: must not climb with ..; name the folder itself"),
    ("revision of a claim", llm_manifest(model={"uri": "pvc://a/b", "revision": "main"}),
     "model.revision and secretRef do not apply to pvc://; remove them"),
    ("revision twice", llm_manifest(model={"uri": "hf://a/b@x", "revision": "main"}),
     "model.revision: given twice; remove @... from model.uri"),
    ("tensor twice", llm_manifest(parallelism={"tensor": 1, "allowedTensor": [1, 2]}),
     "parallelism: set tensor (fixed) or allowedTensor (planner chooses), not both"),
    ("replicas and scaling",
     llm_manifest(replicas=1, scaling={"minReplicas": 1, "maxReplicas": 2}),
     "replicas: remove it to let scaling apply, or remove scaling"),
    ("scaling upside down", llm_manifest(scaling={"minReplicas": 3, "maxReplicas": 2}),
     "scaling.minReplicas exceeds maxReplicas; lower it"),
    ("KV request over limit", llm_manifest(sharing={"kvCache": {"request": "2Gi", "limit": "1Gi"}}),
     "sharing.kvCache.request exceeds limit; lower it"),
    ("KV request over limit, mixed forms",
     llm_manifest(sharing={"kvCache": {"request": 2000, "limit": "1k"}}),
     "sharing.kvCache.request exceeds limit; lower it"),
    ("exclusive with percents",
     llm_manifest(sharing={"mode": "Exclusive", "maxComputePercent": 50}),
     "sharing: Exclusive owns the group; remove min/maxComputePercent or use Shared"),
    ("percents upside down",
     llm_manifest(sharing={"minComputePercent": 60, "maxComputePercent": 50}),
     "sharing.minComputePercent exceeds maxComputePercent; lower it"),
    ("empty slo", llm_manifest(slo={}), "slo: set ttft, tpot or both, e.g. ttft: 500ms"),
    ("impossible objective", llm_manifest(slo={"ttft": "1s", "objective": 100}),
     "slo.objective: at least 50 and at most 99.99"),
    ("not an engine", llm_manifest(engine={"type": "Turbo"}),
     'spec.engine.type: Unsupported value: "Turbo": supported values:'),
    ("not a duration", llm_manifest(slo={"ttft": "5 hours"}), "spec.slo.ttft: Invalid value"),
    ("a float", llm_manifest(workload={"requestRate": 0.5}),
     "spec.workload.requestRate: Invalid value"),
    ("negative KV request", llm_manifest(sharing={"kvCache": {"request": -5}}),
     "should be greater than or equal to 0"),
    ("negative KV request, as text", llm_manifest(sharing={"kvCache": {"request": "-5Mi"}}),
     "spec.sharing.kvCache.request: Invalid value"),
    ("negative rate", llm_manifest(workload={"requestRate": -1}),
     "should be greater than or equal to 0"),
    ("negative slot memory",
     pool_manifest(gpu={"static": [{"node": "a", "count": 1, "memory": -1}]}),
     "should be greater than or equal to 0"),
    ("text for a number", llm_manifest(replicas="two"), "spec.replicas: Invalid value"),
    ("zero replicas", llm_manifest(replicas=0),
     "should be greater than or equal to 1"),
    ("priority too high", llm_manifest(priority=1001), "should be less than or equal to 1000"),
    ("odd tensor", llm_manifest(parallelism={"tensor": 3}),
     "spec.parallelism.tensor: Unsupported value"),
    ("not a mode", pool_manifest(mode="Yolo"), 'spec.mode: Unsupported value: "Yolo"'),
    ("not a device", pool_manifest(runtime={"device": "TPU"}),
     'spec.runtime.device: Unsupported value: "TPU"'),
    ("a node twice",
     pool_manifest(gpu={"static": [{"node": "a", "count": 1}, {"node": "a", "count": 2}]}),
     "spec.gpu.static[1]: Duplicate value"),
    ("no GPUs on a node", pool_manifest(gpu={"static": [{"node": "a", "count": 0}]}),
     "should be greater than or equal to 1"),
)  # fmt: skip

# (what changes, before, after, what every validator must say)
CHANGES: tuple[tuple[str, Manifest, Manifest, str], ...] = (
    ("pool of a model", llm_manifest("mover"), llm_manifest("mover", poolRef={"name": "other"}),
     "poolRef is immutable; create a second LLMDeployment, wait for Ready, delete this one"),
    ("device of a pool", pool_manifest("turner"),
     pool_manifest("turner", runtime={"device": "CUDA"}),
     "runtime.device is immutable; create a new GPUPool"),
)  # fmt: skip

GOOD: tuple[Manifest, ...] = (
    llm_manifest(),
    pool_manifest(),
    llm_manifest(
        "everything",
        poolRef={"name": "default"},
        model={
            "uri": "hf://org/model@abc",
            "servedName": "org/Model",
            "dtype": "bfloat16",
            "maxModelLen": 4096,
            "secretRef": {"name": "token", "key": "hf"},
        },
        engine={"type": "Torch"},
        parallelism={"allowedTensor": [1, 2]},
        scaling={"minReplicas": 1, "maxReplicas": 2},
        workload={"isl": 100, "osl": 20, "requestRate": "2.5"},
        slo={"ttft": "500ms", "tpot": "0.05s", "objective": "99.5"},
        sharing={
            "mode": "Shared",
            "tenantGroup": "blue",
            "minComputePercent": 10,
            "kvCache": {"request": "1Gi", "limit": "2Gi"},
        },
        priority=-5,
        rollout={"drainTimeout": "1m30s"},
        placement={"movable": False},
    ),
    pool_manifest(
        "large",
        mode="Execute",
        nodeSelector={"a": "b"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        gpu={"static": [{"node": "n", "count": 8, "memory": "80Gi"}], "max": 4},
        groupSizes=[1, 2],
        policy={"allowSharing": False, "shareStepPercent": 5},
        gateway={"holdTimeout": "10s", "maxQueuedPerModel": 0},
        runtime={"device": "CPU", "image": "x:1", "podTemplate": {"cpu": 2, "memory": "3Gi"}},
    ),
)
