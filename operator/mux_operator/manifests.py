"""Builders of the Kubernetes objects we own: domain values in, manifests out; pure.

Pods keep the restricted Pod Security Standard: an own non-root user, no capability, a read-only
root, no service account token. The image's entry point is its Python.
"""

import json
from collections.abc import Iterable
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from mux_core.actions import InspectModel
from mux_core.routes import RouteTable
from mux_core.routes import to_json as routes_json
from mux_core.snapshot import UnitRecord
from mux_core.specs import PodTemplate, PoolSpec
from mux_core.units import MIB
from mux_core.unitspec import Device
from mux_core.unitspec import to_json as unit_json
from mux_operator import names

Manifest = dict[str, Any]

USER: Final = 65532
_OVERHEAD_BYTES: Final = 1024 * MIB
"""Python, torch and buffers of a unit's processes beside its arenas; asked for, not enforced."""
_INSPECT: Final = (
    "import sys; from mux_runtime.inspect import main; "
    "sys.stdout = open('/dev/termination-log', 'w'); sys.exit(main(sys.argv[1:]))"
)
"""The result goes where the kubelet reports it from: a pod needs no other way to us."""

_GPU_ENVIRONMENT: Final = ({"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"},)
"""With it the container runtime puts the MPS daemon and NVML beside the driver's libraries."""


def unit_config_map(record: UnitRecord, *, namespace: str, pool_uid: str) -> Manifest:
    """The record of a unit: its document and the GPUs it occupies."""
    group = {"node": record.group.node, "gpus": list(record.group.gpus)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(record.unit, namespace, "unit", {names.UNIT: record.unit,
                              names.POOL: record.spec.pool},
                              owner=_pool_owner(record.spec.pool, pool_uid)),
        "data": {
            names.UNIT_KEY: unit_json(record.spec),
            names.GROUP_KEY: json.dumps(group, sort_keys=True),
        },
    }  # fmt: skip


def unit_pod(
    record: UnitRecord, pool: PoolSpec, *, claims: Iterable[str], namespace: str, pool_uid: str,
    image: str,
) -> Manifest:  # fmt: skip
    """The pod that carries one incarnation of a unit."""
    claims = sorted(claims)
    spec = record.spec
    labels = {
        **pool.pod.labels, names.UNIT: record.unit, names.POOL: spec.pool,
        names.INCARNATION: str(spec.incarnation),
    }  # fmt: skip
    metadata = _metadata(names.pod_name(record.unit, spec.incarnation), namespace, "unit", labels,
                         owner=_pool_owner(spec.pool, pool_uid))  # fmt: skip
    metadata["annotations"] = dict(pool.pod.annotations)
    grace = max((member.drain_timeout_s for member in spec.members), default=30.0) + 15
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            **_pod_basics(pool.pod),
            **_node_choice(record, pool.pod),
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": int(grace),
            "containers": [_unit_container(record, pool, claims, image)],
            "volumes": [
                {"name": "unit", "configMap": {"name": record.unit}},
                {"name": "run", "emptyDir": {}},
                {"name": "scratch", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory",
                                             "sizeLimit": _mebibytes(_shared_bytes(record))}},
                *(_claim_volume(claim) for claim in claims),
            ],
        },
    }  # fmt: skip


def inspect_pod(
    action: InspectModel, pod: PodTemplate, *, namespace: str, image: str
) -> Manifest:  # fmt: skip
    """The pod that reads a checkpoint's headers and reports by its termination message."""
    claim = action.source.claim or ""
    metadata = _metadata(names.fetch_name(action.model), namespace, "inspect",
                         {names.MODEL: action.model},
                         owner=_owner("LLMDeployment", action.model, action.uid))  # fmt: skip
    metadata["annotations"] = {names.SOURCE: action.source.key}
    container = {
        "name": "inspect",
        "image": image,
        "args": ["-c", _INSPECT, action.path],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "securityContext": _container_security(),
        "volumeMounts": [_claim_mount(claim)],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            **_pod_basics(pod),
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [_claim_volume(claim)],
        },
    }


def model_service(model: str, port: int, *, namespace: str, uid: str) -> Manifest:
    """A model's own address: the pods labelled as serving it, at its own port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(names.service_name(model), namespace, "model",
                              {names.MODEL: model}, owner=_owner("LLMDeployment", model, uid)),
        "spec": {
            "selector": {f"{names.SERVES}{model}": "serving"},
            "ports": [{"name": "http", "port": 80, "targetPort": port, "protocol": "TCP"}],
        },
    }  # fmt: skip


def routes_config_map(table: RouteTable) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.ROUTES, "namespace": table.namespace,
                     "labels": {names.PART_OF: names.US, names.COMPONENT: "routes"}},
        "data": {names.ROUTES_KEY: routes_json(table)},
    }  # fmt: skip


def unit_labels(serving: Iterable[str], draining: Iterable[str]) -> dict[str, str]:
    """The labels by which model Services select a unit pod."""
    return {
        **{f"{names.SERVES}{model}": "draining" for model in draining},
        **{f"{names.SERVES}{model}": "serving" for model in serving},
    }


def _unit_container(
    record: UnitRecord, pool: PoolSpec, claims: list[str], image: str
) -> Manifest:  # fmt: skip
    return {
        "name": "unit",
        "image": pool.pod.image or image,
        "args": ["-m", "mux_runtime", "unit",
                 "--spec", f"{names.UNIT_FOLDER}/{names.UNIT_KEY}",
                 "--run-dir", f"{names.RUN_FOLDER}/unit", "--host", "$(POD_IP)"],
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "HOME", "value": names.SCRATCH_FOLDER},
            {"name": "TMPDIR", "value": names.SCRATCH_FOLDER},
            *(_GPU_ENVIRONMENT if record.spec.device is Device.CUDA else ()),
        ],
        "ports": [{"name": name, "containerPort": port} for name, port in
                  (("http", 8000), ("internal", 8001), ("metrics", 8080), ("control", 9090))],
        "readinessProbe": {"tcpSocket": {"port": 9090}, "periodSeconds": 2},
        "resources": _unit_resources(record, pool),
        "securityContext": _container_security(),
        "volumeMounts": [
            {"name": "unit", "mountPath": names.UNIT_FOLDER, "readOnly": True},
            {"name": "run", "mountPath": names.RUN_FOLDER},
            {"name": "scratch", "mountPath": names.SCRATCH_FOLDER},
            {"name": "shm", "mountPath": "/dev/shm"},
            *(_claim_mount(claim) for claim in claims),
        ],
    }  # fmt: skip


def _unit_resources(record: UnitRecord, pool: PoolSpec) -> Manifest:
    requests = {
        "cpu": pool.pod.cpu or "1",
        "memory": pool.pod.memory or _mebibytes(_arena_bytes(record) + _OVERHEAD_BYTES),
    }
    if pool.device is Device.CPU:
        return {"requests": requests}
    gpus = {pool.resource_name: str(record.group.size)}
    return {"requests": {**requests, **gpus}, "limits": gpus}


def _arena_bytes(record: UnitRecord) -> int:
    """Weights and KV of all slots; on a GPU only what transfers need is asked for."""
    if record.spec.device is Device.CPU:
        return _shared_bytes(record)
    return _OVERHEAD_BYTES


def _shared_bytes(record: UnitRecord) -> int:
    """What /dev/shm may hold: arenas; on a GPU the weights, from which its hosts copy theirs."""
    return record.spec.memory_bytes * record.spec.gpus


def _mebibytes(value: int) -> str:
    whole = (Decimal(value) / MIB).to_integral_value(rounding=ROUND_CEILING)
    return f"{whole}Mi"


def _pod_basics(pod: PodTemplate) -> Manifest:
    basics: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    optional = {"schedulerName": pod.scheduler, "runtimeClassName": pod.runtime_class,
                "priorityClassName": pod.priority_class}  # fmt: skip
    basics |= {name: value for name, value in optional.items() if value}
    if pod.pull_secrets:
        basics["imagePullSecrets"] = [{"name": name} for name in pod.pull_secrets]
    if pod.tolerations:
        basics["tolerations"] = [dict(item) for item in pod.tolerations]
    return basics


def _node_choice(record: UnitRecord, pod: PodTemplate) -> Manifest:
    """Exactly the planned node; by name, since a label may be shared or missing."""
    by_name = {"key": "metadata.name", "operator": "In", "values": [record.group.node]}
    term = {"nodeSelectorTerms": [{"matchFields": [by_name]}]}
    choice: Manifest = {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}
    }
    if pod.node_selector:
        choice["nodeSelector"] = dict(pod.node_selector)
    return choice


def _container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _claim_volume(claim: str) -> Manifest:
    source = {"claimName": claim, "readOnly": True}
    return {"name": _volume_name(claim), "persistentVolumeClaim": source}


def _claim_mount(claim: str) -> Manifest:
    path = f"{names.MODELS_FOLDER}/{claim}"
    return {"name": _volume_name(claim), "mountPath": path, "readOnly": True}


def _volume_name(claim: str) -> str:
    """Claims may hold dots and 253 characters; volumes are labels of at most 63."""
    return f"claim-{claim.replace('.', '-')}"[:63].rstrip("-")


def _metadata(
    name: str, namespace: str, component: str, labels: dict[str, str], *, owner: Manifest
) -> Manifest:
    own = {names.PART_OF: names.US, names.MANAGED_BY: names.MANAGER, names.COMPONENT: component}
    return {"name": name, "namespace": namespace, "labels": {**labels, **own},
            "ownerReferences": [owner]}  # fmt: skip


def _pool_owner(pool: str, uid: str) -> Manifest:
    return _owner("GPUPool", pool, uid)


def _owner(kind: str, name: str, uid: str) -> Manifest:
    return {"apiVersion": "muxserve.io/v1alpha1", "kind": kind, "name": name, "uid": uid,
            "controller": True, "blockOwnerDeletion": False}  # fmt: skip
