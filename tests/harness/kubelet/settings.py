"""What one process node is: its name, size, addresses and pace."""

import dataclasses
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.namespace import DNS_SERVICE, KUBERNETES_SERVICE, POD_NETWORK

_NODES_PER_NETWORK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """One node. `index` picks its quarter of the pod network: node address .1, pods from .2.

    `entrypoints` says what an image would run when a container names no command, by repository
    (without tag or digest); images mean nothing else here.
    """

    name: str = "node-0"
    index: int = 0
    cpu: str = "64"
    memory: str = "256Gi"
    gpus: int = 8
    labels: Mapping[str, str] = field(default_factory=dict)
    entrypoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # The real kubelet begins at 10 s and ends at 300 s; a test has no such time.
    restart_wait_seconds: float = 0.5
    restart_wait_limit_seconds: float = 10.0
    network: str = POD_NETWORK

    def __post_init__(self) -> None:
        if not 0 <= self.index < _NODES_PER_NETWORK:
            raise ValueError(f"node {self.name} has index {self.index}, the limit is 3")

    @property
    def address(self) -> str:
        return self._addresses()[0]

    @property
    def pod_addresses(self) -> list[str]:
        return self._addresses()[1:]

    def capacity(self) -> dict[str, str]:
        capacity = {
            "cpu": self.cpu,
            "memory": self.memory,
            "ephemeral-storage": "500Gi",
            "pods": str(len(self.pod_addresses)),
        }
        if self.gpus:
            capacity["nvidia.com/gpu"] = str(self.gpus)
        return capacity

    def _addresses(self) -> list[str]:
        quarters = ipaddress.IPv4Network(self.network).subnets(prefixlen_diff=2)
        return [str(host) for host in list(quarters)[self.index].hosts()]


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletSettings:
    """Where the node's process finds the API server and keeps its files."""

    node: NodeSettings
    kubeconfig: Path
    folder: Path
    certificate: Path
    certificate_key: Path
    # Where pods find the API server: what a real kubelet puts into their environment.
    service_host: str = KUBERNETES_SERVICE
    service_port: int = 443
    dns_server: str = DNS_SERVICE
    # The project's own interpreter comes first on every container's PATH.
    path: str = "/usr/local/bin:/usr/bin:/bin"

    @property
    def pods_folder(self) -> Path:
        return self.folder / "pods"

    @property
    def logs_folder(self) -> Path:
        return self.folder / "logs"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "KubeletSettings":
        raw: dict[str, Any] = json.loads(text)
        node = NodeSettings(**raw.pop("node"))
        for name in ("kubeconfig", "folder", "certificate", "certificate_key"):
            raw[name] = Path(raw[name])
        return cls(node=node, **raw)
