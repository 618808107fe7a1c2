"""The README's cluster block runs as it stands there, on the test cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness import tools
from harness.cluster import Cluster
from harness.waiting import eventually
from mux_cli.tiny_models import write_demo
from operator_cluster import claim, volume
from readme_blocks import ROOT, blocks

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(400)]

NAMESPACE = "muxserve"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Folders `chat` and `code`, as the README wants them on the claim."""
    made = write_demo(tmp_path / "made")
    for name, source in zip(("chat", "code"), made.values(), strict=False):
        shutil.copytree(source, tmp_path / "models" / name)
    return tmp_path / "models"


def story(cluster: Cluster) -> str:
    """What a person would look at when it does not come up."""
    own = cluster.kubectl(NAMESPACE)
    pods = [pod["metadata"]["name"] for pod in own.get("pods")["items"]]
    logs = [f"--- {pod}\n{cluster.process_node().log(NAMESPACE, pod)[-3000:]}" for pod in pods]
    return "\n".join([own("get", "pods,llm,gpupool"), own("describe", "llm"), *logs])


def test_the_cluster_block_serves_two_models(cluster: Cluster, models: Path) -> None:
    admin = cluster.kubectl()
    admin("create", "namespace", NAMESPACE)
    admin.apply(volume(NAMESPACE, models))
    cluster.kubectl(NAMESPACE).apply(claim(NAMESPACE))
    ((_, block),) = [block for block in blocks() if block[0] == "cluster"]
    env = {
        **os.environ,
        "KUBECONFIG": str(cluster.kubeconfig),
        "PATH": os.pathsep.join([str(tools.require("helm").parent), os.environ["PATH"]]),
    }
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr + story(cluster)
        print(done.stdout)
        assert "data: [DONE]" in done.stdout
    finally:
        cluster.kubectl(NAMESPACE)("delete", "llm,gpupool", "--all")
        cluster.helm(NAMESPACE)("uninstall", "muxserve")
        admin("delete", "namespace", NAMESPACE, "--wait=false")
        admin("delete", "pv", f"{NAMESPACE}-models", "--wait=false")
    eventually(lambda: not cluster.kubectl(NAMESPACE).get("pods")["items"], "no pod is left")
