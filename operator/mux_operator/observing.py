"""Kubernetes objects as the decision's values; pure, plain dictionaries in.

What is not ours is not seen: children count by their labels and their owner's uid.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mux_core.errors import SpecError
from mux_core.placement import GpuGroup, GpuNode
from mux_core.routes import RouteTable
from mux_core.routes import from_json as routes_from_json
from mux_core.snapshot import (
    Carrier,
    CarrierState,
    GatewayAddress,
    Inspection,
    LlmObject,
    PlanRecord,
    PoolObject,
    UnitAddress,
    UnitRecord,
)
from mux_core.specs import PoolKey, PoolSpec, Scheme
from mux_core.units import GIB, MIB, Bytes, ModelName, NodeName, UnitId
from mux_core.unitspec import Device
from mux_core.unitspec import from_json as unit_from_json
from mux_operator import names
from mux_operator.resolving import resolved_from
from mux_operator.schema import parse_llm, parse_pool
from mux_operator.status_documents import read_llm_status, read_pool_status, seconds

Object = Mapping[str, Any]

CPU_SLOT: Bytes = Bytes(2 * GIB)
"""Memory of a CPU slot that states none."""
NODE_GRACE_S = 60.0
"""A node that is not Ready for so long is given up, and its units are planned anew."""
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What parsing raises on a document that no schema of ours has judged."""
_GPU_SHARE = 0.9
"""Of a GPU's memory, what weights and KV may take; the rest is context and activations."""


def labels(item: Object) -> Mapping[str, str]:
    found: Mapping[str, str] = item["metadata"].get("labels") or {}
    return found


def owned_by(item: Object, uid: str) -> bool:
    owners = item["metadata"].get("ownerReferences") or ()
    return any(owner.get("uid") == uid for owner in owners)


def pool_named(item: Object) -> str:
    """The pool an LLMDeployment names; cheap, for every event asks it."""
    spec = item.get("spec")
    reference = spec.get("poolRef") if isinstance(spec, Mapping) else None
    return str(reference.get("name", "default")) if isinstance(reference, Mapping) else "default"


def llm_object(item: Object) -> LlmObject:
    metadata = item["metadata"]
    try:
        spec, error = parse_llm(item), ""
    except SpecError as problem:
        spec, error = None, str(problem)
    except _UNREADABLE as problem:
        spec, error = None, (f"spec: cannot be read ({type(problem).__name__}: {problem}); apply "
                             "the manifest again")  # fmt: skip
    path = source_error = ""
    if spec is not None and spec.source.scheme is Scheme.PVC:
        path = names.model_folder(spec.source.claim or "", spec.source.folder)
    elif spec is not None:
        source_error = (f"model.uri: {spec.source.scheme}:// is not fetched by this release; put "
                        "the checkpoint on a claim: pvc://claim/path")  # fmt: skip
    return LlmObject(
        name=ModelName(metadata["name"]), uid=metadata["uid"], generation=metadata["generation"],
        spec=spec, created_at=seconds(metadata["creationTimestamp"]), spec_error=error, path=path,
        source_error=source_error, pool=pool_named(item),
        status=read_llm_status(item.get("status") or {}),
    )  # fmt: skip


def pool_object(key: PoolKey, item: Object) -> PoolObject:
    metadata = item["metadata"]
    try:
        spec, error = parse_pool(item), ""
    except (SpecError, *_UNREADABLE) as problem:
        spec, error = PoolSpec(), str(problem)
    return PoolObject(
        key=key, uid=metadata["uid"], generation=metadata["generation"], spec=spec,
        spec_error=error, status=read_pool_status(item.get("status") or {}),
    )  # fmt: skip


def inventory(pool: PoolSpec, nodes: Iterable[Object], *, now: float) -> tuple[GpuNode, ...]:
    """`gpu.static` as it is written, else the nodes that match and offer the resource.

    A node that is not Ready counts for a while yet: most come back, and its units with them.
    """
    gpu = pool.product or ("cpu" if pool.device is Device.CPU else "gpu")
    if pool.static:
        return tuple(
            GpuNode(name=item.node, gpus=item.count, memory=item.memory or CPU_SLOT, gpu=gpu)
            for item in sorted(pool.static, key=lambda item: item.node)
        )
    if pool.device is Device.CPU:
        return ()
    found = (_gpu_node(pool, node, gpu) for node in nodes
             if now - _not_ready_since(node, now) < NODE_GRACE_S)  # fmt: skip
    return tuple(sorted((node for node in found if node is not None), key=lambda n: n.name))


def lost_nodes(nodes: Iterable[Object]) -> frozenset[NodeName]:
    """The nodes that are not Ready now."""
    return frozenset(NodeName(node["metadata"]["name"]) for node in nodes if not _is_ready(node))


def unit_record(item: Object) -> UnitRecord | None:
    """A unit's record; None for one that cannot be read, which is then written anew."""
    try:
        spec = unit_from_json(item["data"][names.UNIT_KEY])
        group = json.loads(item["data"][names.GROUP_KEY])
    except (SpecError, KeyError, TypeError, ValueError):
        return None
    gpus = GpuGroup(node=NodeName(group["node"]), gpus=tuple(group["gpus"]))
    return UnitRecord(unit=UnitId(item["metadata"]["name"]), group=gpus, spec=spec)


def carrier(item: Object) -> Carrier:
    marks = labels(item)
    status = item.get("status") or {}
    state = _carrier_state(item)
    address = status.get("podIP")
    volumes = item["spec"].get("volumes") or ()
    claims = (v["persistentVolumeClaim"]["claimName"] for v in volumes
              if "persistentVolumeClaim" in v)  # fmt: skip
    return Carrier(
        unit=UnitId(marks[names.UNIT]), incarnation=int(marks[names.INCARNATION]),
        name=item["metadata"]["name"], state=state, node=item["spec"].get("nodeName", ""),
        address=UnitAddress(host=address) if address else None, claims=frozenset(claims),
        serving=_served(marks, "serving"), draining=_served(marks, "draining"),
        message=pod_message(item),
    )  # fmt: skip


def inspection(item: Object) -> Inspection:
    """An inspect pod: its result is the termination message of its one container."""
    model = ModelName(labels(item)[names.MODEL])
    source = (item["metadata"].get("annotations") or {}).get(names.SOURCE, "")
    statuses = (item.get("status") or {}).get("containerStatuses") or ()
    for status in statuses:
        ended = (status.get("state") or {}).get("terminated")
        if ended is not None:
            text = ended.get("message", "")
            why = f"inspect run ended with {ended.get('exitCode')} and no result"
            return Inspection(model=model, source=source,
                              result=resolved_from(text, text or why, source=source))  # fmt: skip
    return Inspection(model=model, source=source, message=pod_message(item))


def gateway_address(item: Object) -> GatewayAddress | None:
    address = (item.get("status") or {}).get("podIP")
    if not address or _carrier_state(item) is not CarrierState.RUNNING:
        return None
    return GatewayAddress(name=item["metadata"]["name"], host=address)


def route_table(item: Object | None) -> RouteTable | None:
    text = ((item or {}).get("data") or {}).get(names.ROUTES_KEY)
    if not text:
        return None
    try:
        return routes_from_json(text)
    except SpecError:
        return None


def plan_record(item: Object) -> PlanRecord | None:
    revision = labels(item).get(names.REVISION, "")
    if not revision.isdigit():
        return None
    waits = (item.get("status") or {}).get("phase") == names.PLAN_WAITS
    return PlanRecord(revision=int(revision), inputs_hash=item["spec"].get("inputsHash", ""),
                      name=item["metadata"]["name"], waits=waits)  # fmt: skip


def service(item: Object) -> tuple[ModelName, int] | None:
    model = labels(item).get(names.MODEL)
    ports = item["spec"].get("ports") or ()
    if model is None or not ports:
        return None
    return ModelName(model), int(ports[0]["targetPort"])


def pod_message(item: Object) -> str:
    """What a pod that does not run waits for, in the words of scheduler and kubelet."""
    status = item.get("status") or {}
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("message"):
            return f"{waiting.get('reason')}: {waiting['message']}"
    for condition in status.get("conditions") or ():
        if condition["status"] == "False" and condition.get("message"):
            return f"{condition.get('reason')}: {condition['message']}"
    return ""


def _carrier_state(item: Object) -> CarrierState:
    if item["metadata"].get("deletionTimestamp"):
        return CarrierState.STOPPING
    phase = (item.get("status") or {}).get("phase", "Pending")
    if phase in ("Failed", "Succeeded"):
        return CarrierState.DEAD
    return CarrierState.RUNNING if phase == "Running" else CarrierState.PENDING


def _served(marks: Mapping[str, str], state: str) -> frozenset[ModelName]:
    return frozenset(ModelName(key.removeprefix(names.SERVES)) for key, value in marks.items()
                     if key.startswith(names.SERVES) and value == state)  # fmt: skip


def _ready_condition(node: Object) -> Mapping[str, Any]:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == "Ready"), {})


def _is_ready(node: Object) -> bool:
    return _ready_condition(node).get("status") == "True"


def _not_ready_since(node: Object, now: float) -> float:
    """When the node stopped being Ready: `now` while it is, long ago where nothing says when."""
    if _is_ready(node):
        return now
    since = _ready_condition(node).get("lastTransitionTime")
    return seconds(since) if since else 0.0


def _gpu_node(pool: PoolSpec, node: Object, gpu: str) -> GpuNode | None:
    marks = labels(node)
    wanted = pool.pod.node_selector
    status = node.get("status") or {}
    count = int((status.get("allocatable") or {}).get(pool.resource_name, "0"))
    if count < 1 or any(marks.get(k) != v for k, v in wanted.items()):
        return None
    mebibytes = int(marks.get("nvidia.com/gpu.memory", "0"))
    if mebibytes < 1:
        return None
    return GpuNode(name=NodeName(node["metadata"]["name"]), gpus=count,
                   memory=Bytes(int(mebibytes * MIB * _GPU_SHARE)),
                   gpu=pool.product or marks.get("nvidia.com/gpu.product", gpu))  # fmt: skip
