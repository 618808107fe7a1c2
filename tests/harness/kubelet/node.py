"""The Node object: registration, status, and the lease that keeps it Ready."""

import asyncio
import contextlib
import os

from harness.api import MERGE, STRATEGIC_MERGE, Api, ApiError, Object
from harness.kubelet.clock import now, now_micro
from harness.kubelet.settings import NodeSettings

LOG_PORT = 10250

_BEAT_SECONDS = 5.0
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


async def keep_alive(api: Api, node: NodeSettings) -> None:
    """Register the node, then keep its status and lease fresh for ever."""
    with contextlib.suppress(ApiError):  # registered by a former life
        await api.request("POST", "/api/v1/nodes", _object(node))
    since = now()
    while True:
        with contextlib.suppress(ApiError):
            status = {"status": _status(node, since)}
            path = f"/api/v1/nodes/{node.name}/status"
            await api.request("PATCH", path, status, kind=STRATEGIC_MERGE)
            await _renew(api, node.name)
        await asyncio.sleep(_BEAT_SECONDS)


async def _renew(api: Api, name: str) -> None:
    lease: Object = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now_micro()},
    }
    try:
        await api.request("PATCH", f"{_LEASES}/{name}", lease, kind=MERGE)
    except ApiError:
        await api.request("POST", _LEASES, lease)


def _object(node: NodeSettings) -> Object:
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }
    metadata = {"name": node.name, "labels": labels | dict(node.labels)}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata}


def _status(node: NodeSettings, since: str) -> Object:
    conditions = {
        "Ready": "True",
        "MemoryPressure": "False",
        "DiskPressure": "False",
        "PIDPressure": "False",
    }
    return {
        "capacity": node.capacity(),
        "allocatable": node.capacity(),
        "addresses": [
            {"type": "InternalIP", "address": node.address},
            {"type": "Hostname", "address": node.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": LOG_PORT}},
        "conditions": [
            {
                "type": kind,
                "status": status,
                "reason": "ProcessKubelet",
                "message": "",
                "lastHeartbeatTime": now(),
                "lastTransitionTime": since,
            }
            for kind, status in conditions.items()
        ],
        "nodeInfo": _info(),
    }


def _info() -> dict[str, str]:
    unknown = ("bootID", "machineID", "systemUUID", "kubeProxyVersion")
    return dict.fromkeys(unknown, "") | {
        "kubeletVersion": "v1.36.4",
        "kernelVersion": os.uname().release,
        "containerRuntimeVersion": "process://1",
        "osImage": "process kubelet",
        "operatingSystem": "linux",
        "architecture": "amd64",
    }
