"""Manifests to typed specs. Reads what the API server stored or the local validator passed."""

from collections.abc import Mapping
from typing import Any

from mux_core.errors import SpecError
from mux_core.llm import Demand, SharingPolicy, Slo
from mux_core.specs import (
    GatewayLimits,
    LlmSpec,
    Mode,
    ModelSource,
    PodTemplate,
    PoolSpec,
    Scheme,
    StaticNode,
)
from mux_core.units import NodeName, Percent, parse_bytes, parse_quantity, parse_seconds
from mux_core.unitspec import Device

Fields = Mapping[str, Any]


def parse_llm(manifest: Fields) -> LlmSpec:
    """The spec of an LLMDeployment. Raises SpecError on a value the schema cannot judge."""
    spec: Fields = manifest["spec"]
    model: Fields = spec["model"]
    name: str = manifest["metadata"]["name"]
    least, most = _replicas(spec)
    return LlmSpec(
        pool=spec.get("poolRef", {}).get("name", "default"),
        source=parse_source(model["uri"], revision=model.get("revision", "")),
        served_name=model.get("servedName", name),
        engine=spec.get("engine", {}).get("type", "Auto"),
        dtype=model.get("dtype", "Auto"),
        max_model_len=model.get("maxModelLen"),
        allowed_tensor=_tensor(spec.get("parallelism", {})),
        min_replicas=least,
        max_replicas=most,
        declared=_declared(spec.get("workload", {})),
        slo=_slo(spec.get("slo")),
        sharing=_sharing(spec.get("sharing", {})),
        priority=spec.get("priority", 0),
        drain_timeout_s=parse_seconds(spec.get("rollout", {}).get("drainTimeout", "120s"),
                                      subject="rollout.drainTimeout"),
        movable=spec.get("placement", {}).get("movable", True),
    )  # fmt: skip


def parse_source(uri: str, *, revision: str = "") -> ModelSource:
    """`model.uri` taken apart; `@rev` of the uri counts as revision, except for local folders."""
    scheme_text, separator, location = uri.partition("://")
    if not separator or scheme_text not in set(Scheme) or not location:
        raise SpecError(f"model.uri: {uri!r}; write SCHEME://LOCATION with one of "
                        f"{', '.join(Scheme)}")  # fmt: skip
    scheme = Scheme(scheme_text)
    if scheme not in (Scheme.FILE, Scheme.PVC) and not revision:
        location, _, revision = location.partition("@")
    return ModelSource(scheme=scheme, location=location, revision=revision)


def parse_pool(manifest: Fields) -> PoolSpec:
    """The spec of a GPUPool. Raises SpecError on a value the schema cannot judge."""
    spec: Fields = manifest["spec"]
    gpu: Fields = spec.get("gpu", {})
    policy: Fields = spec.get("policy", {})
    return PoolSpec(
        mode=Mode(spec.get("mode", "RecommendOnly")),
        device=Device(spec.get("runtime", {}).get("device", "CUDA")),
        static=tuple(_static(item) for item in gpu.get("static", ())),
        resource_name=gpu.get("resourceName", "nvidia.com/gpu"),
        product=gpu.get("product", ""),
        gpu_limit=gpu.get("max"),
        group_sizes=tuple(sorted(spec.get("groupSizes", (1, 2, 4, 8)))),
        allow_sharing=policy.get("allowSharing", True),
        share_step_percent=Percent(policy.get("shareStepPercent", 10)),
        max_overcommit_percent=policy.get("maxOvercommitPercent", 100),
        max_tensor_members=policy.get("maxTensorParallelMembersPerUnit", 1),
        min_gain_percent=spec.get("moves", {}).get("minGainPercent", 15),
        demand_source=spec.get("demand", {}).get("source", "Auto"),
        gateway=_gateway(spec.get("gateway", {})),
        pod=_pod(spec),
    )


def _replicas(spec: Fields) -> tuple[int, int]:
    if "scaling" in spec:
        return spec["scaling"]["minReplicas"], spec["scaling"]["maxReplicas"]
    replicas: int = spec.get("replicas", 1)
    return replicas, replicas


def _tensor(parallelism: Fields) -> tuple[int, ...]:
    if "tensor" in parallelism:
        return (parallelism["tensor"],)
    return tuple(sorted(parallelism.get("allowedTensor", ())))


def _declared(workload: Fields) -> Demand | None:
    if not workload:
        return None
    rate = parse_quantity(workload.get("requestRate", 0), subject="workload.requestRate")
    lengths = {
        ours: float(workload[theirs])
        for ours, theirs in (("prompt_tokens", "isl"), ("output_tokens", "osl"))
        if theirs in workload
    }
    return Demand(rate=float(rate), **lengths)


def _slo(slo: Fields | None) -> Slo | None:
    if slo is None:
        return None
    times = {
        ours: parse_seconds(slo[theirs], subject=f"slo.{theirs}") if theirs in slo else None
        for ours, theirs in (("ttft_s", "ttft"), ("tpot_s", "tpot"))
    }
    objective = parse_quantity(slo.get("objective", "99"), subject="slo.objective")
    return Slo(ttft_s=times["ttft_s"], tpot_s=times["tpot_s"], objective=float(objective / 100))


def _sharing(sharing: Fields) -> SharingPolicy:
    kv: Fields = sharing.get("kvCache", {})
    least = sharing.get("minComputePercent")
    limit = kv.get("limit")
    return SharingPolicy(
        exclusive=sharing.get("mode") == "Exclusive",
        tenant_group=sharing.get("tenantGroup", ""),
        min_percent=None if least is None else Percent(least),
        max_percent=Percent(sharing.get("maxComputePercent", 100)),
        kv_request=parse_bytes(kv.get("request", 0), subject="sharing.kvCache.request"),
        kv_limit=None if limit is None else parse_bytes(limit, subject="sharing.kvCache.limit"),
    )


def _static(item: Fields) -> StaticNode:
    memory = item.get("memory")
    return StaticNode(
        node=NodeName(item["node"]),
        count=item["count"],
        memory=None if memory is None else parse_bytes(memory, subject="gpu.static[].memory"),
    )


def _gateway(gateway: Fields) -> GatewayLimits:
    return GatewayLimits(
        hold_timeout_s=parse_seconds(gateway.get("holdTimeout", "120s"),
                                     subject="gateway.holdTimeout"),
        max_queued_per_model=gateway.get("maxQueuedPerModel", 256),
    )  # fmt: skip


def _pod(spec: Fields) -> PodTemplate:
    runtime: Fields = spec.get("runtime", {})
    template: Fields = runtime.get("podTemplate", {})
    return PodTemplate(
        node_selector=dict(spec.get("nodeSelector", {})),
        tolerations=tuple(dict(item) for item in spec.get("tolerations", ())),
        labels=dict(template.get("labels", {})),
        annotations=dict(template.get("annotations", {})),
        cpu=str(template.get("cpu", "")),
        memory=str(template.get("memory", "")),
        scheduler=template.get("schedulerName", ""),
        runtime_class=template.get("runtimeClassName", ""),
        priority_class=template.get("priorityClassName", ""),
        image=runtime.get("image", ""),
        pull_secrets=tuple(item["name"] for item in runtime.get("imagePullSecrets", ())),
    )
