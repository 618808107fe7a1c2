"""The operator's parts on the test cluster: CRDs, the chart, models on a claim."""

import json
import secrets
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cluster import Cluster
from harness.commands import Kubectl
from harness.waiting import eventually
from operator_builders import llm_manifest, pool_manifest

ROOT = Path(__file__).parents[1]
CRDS = ROOT / "crds"
CHART = ROOT / "charts" / "muxserve"
KINDS = ("llmdeployments", "gpupools", "placementplans")


def install_crds(cluster: Cluster) -> None:
    """Applies the CRDs and waits until the API server serves them; again is free."""
    admin = cluster.kubectl()
    admin("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    for plural in KINDS:
        admin("wait", "--for=condition=Established", f"crd/{plural}.muxserve.io", "--timeout=30s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """MuxServe installed by Helm in a namespace of its own, with models on a claim."""

    cluster: Cluster
    namespace: str
    kubectl: Kubectl

    @property
    def url(self) -> str:
        """The gateway, through its Service."""
        service = self.kubectl.get("service", "mux-gateway")
        return f"http://{service['spec']['clusterIP']}:80"

    def condition(self, model: str, kind: str = "Ready") -> dict[str, Any]:
        status = self.kubectl.get("llm", model).get("status", {})
        found: list[dict[str, Any]] = status.get("conditions", [])
        return next((c for c in found if c["type"] == kind), {})

    def wait_ready(self, *models: str, within: float = 60.0) -> None:
        for model in models:
            try:
                eventually(lambda m=model: self._is_ready(m), f"{model} is ready",
                           within=within, every=0.3)  # fmt: skip
            except TimeoutError as error:
                raise TimeoutError(f"{error}\n{self.diagnosis()}") from None

    def diagnosis(self) -> str:
        """What pods there are and what operator and units last logged."""
        node = self.cluster.process_node()
        parts = [self.kubectl("get", "pods", "-o", "wide")]
        for pod in (*self.operator_pods(), *self.unit_pods()):
            name = pod["metadata"]["name"]
            parts.append(f"--- {name}\n{node.log(self.namespace, name)[-3000:]}")
        return "\n".join(parts)

    def unit_pods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.kubectl.get(
            "pods", "-l", "app.kubernetes.io/component=unit")["items"]  # fmt: skip
        return found

    def operator_pods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.kubectl.get(
            "pods", "-l", "app.kubernetes.io/component=operator")["items"]  # fmt: skip
        return found

    def served(self) -> set[str]:
        """What the gateway lists."""
        with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as answer:
            return {item["id"] for item in json.load(answer)["data"]}

    def _is_ready(self, model: str) -> bool:
        conditions = self.kubectl.get("llm", model).get("status", {}).get("conditions", [])
        ready = [c["status"] for c in conditions if c["type"] == "Ready"]
        assert ready == ["True"], [(c["type"], c["reason"], c.get("message")) for c in conditions]
        return True


PROFILES = "step-times"
ONE_SLOT = ({"node": "node-0", "count": 1, "memory": "1Gi"},)


@contextmanager
def installed(
    cluster: Cluster, models: Path, *, operators: int = 1, slots: Sequence[Any] = ONE_SLOT,
    profile: str = "",
) -> Iterator[Installed]:  # fmt: skip
    """The chart in a fresh namespace, `models` on the claim `models`, one CPU pool.

    `profile`: the text of a profile file that the planner is given.
    """
    name = f"mux-{secrets.token_hex(3)}"
    admin = cluster.kubectl()
    admin("create", "namespace", name)
    admin("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    own = cluster.kubectl(name)
    eventually(lambda: own.exists("serviceaccount", "default"), f"the account of {name}")
    admin.apply(volume(name, models))
    own.apply(claim(name))
    helm = cluster.helm(name)
    values = ["image.tag=test", f"operator.replicas={operators}"]
    if profile:
        own.apply(profile_map(profile))
        values.append(f"planner.profiles.configMap={PROFILES}")
    helm("install", "mux", str(CHART), *(word for value in values for word in ("--set", value)))
    try:
        own.apply(pool_manifest(gpu={"static": list(slots)}))
        yield Installed(cluster=cluster, namespace=name, kubectl=own)
    finally:
        own("delete", "llm,gpupool", "--all")
        helm("uninstall", "mux")
        admin("delete", "namespace", name, "--wait=false")
        admin("delete", "pv", f"{name}-models", "--wait=false")


def apply_models(install: Installed, *names: str) -> None:
    install.kubectl.apply(*(llm_manifest(name) for name in names))


def profile_map(text: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": PROFILES},
            "data": {"here.json": text}}  # fmt: skip


def volume(name: str, folder: Path) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{name}-models"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"],
                 "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "",
                 "hostPath": {"path": str(folder)},
                 "claimRef": {"name": "models", "namespace": name}},
    }  # fmt: skip


def claim(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadOnlyMany"], "storageClassName": "",
                 "volumeName": f"{name}-models", "resources": {"requests": {"storage": "1Gi"}}},
    }  # fmt: skip
