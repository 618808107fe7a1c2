"""The operator's parts on the test cluster."""

from pathlib import Path

from harness.cluster import Cluster

ROOT = Path(__file__).parents[1]
CRDS = ROOT / "crds"
KINDS = ("llmdeployments", "gpupools", "placementplans")


def install_crds(cluster: Cluster) -> None:
    """Applies the CRDs and waits until the API server serves them; again is free."""
    admin = cluster.kubectl()
    admin("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    for plural in KINDS:
        admin("wait", "--for=condition=Established", f"crd/{plural}.muxserve.io", "--timeout=30s")
