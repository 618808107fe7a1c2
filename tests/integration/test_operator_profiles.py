"""A ConfigMap of measured step times: plans count with it; a wrong one stops the operator alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import Cluster
from harness.waiting import eventually
from mux_cli.tiny_models import write_demo
from mux_core.costmodel.profile_file import dump_profiles
from mux_operator.release import release
from mux_runtime.engines.checkpoint_files import read_model_config
from operator_builders import llm_manifest
from operator_cluster import Installed, install_crds, installed, profile_map
from profile_builders import MADE, model_profile, profile_set

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(300)]

MEASURED, FITTED = "tiny-llama", "tiny-qwen2"


@pytest.fixture(scope="module")
def stack(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    install_crds(cluster)
    models: dict[str, Path] = write_demo(tmp_path_factory.mktemp("models"))
    measured = model_profile("one", read_model_config(models[MEASURED]).geometry)
    text = dump_profiles(profile_set(measured, made=replace(MADE, release=release())))
    with installed(cluster, models[MEASURED].parent, profile=text) as install:
        install.kubectl.apply(llm_manifest(MEASURED), llm_manifest(FITTED))
        install.wait_ready(MEASURED, FITTED, within=120)
        yield install


def costs(stack: Installed, model: str) -> str | None:
    found: str | None = stack.kubectl.get("llm", model)["status"]["predicted"].get("costs")
    return found


def test_every_plan_says_what_its_costs_stand_on(stack: Installed) -> None:
    assert (costs(stack, MEASURED), costs(stack, FITTED)) == ("measured", "fitted")
    for plan in stack.kubectl.get("placementplans")["items"]:
        for found in plan["spec"]["predicted"]["proposed"]["models"]:
            wanted = "measured" if found["model"] == MEASURED else "fitted"
            assert found["costs"] == wanted


def test_a_wrong_profile_stops_the_operator_and_nothing_else(stack: Installed) -> None:
    stack.kubectl.apply(profile_map("{}"))
    (old,) = stack.operator_pods()
    stack.kubectl("delete", "pod", old["metadata"]["name"])
    wanted = "ended: profile /etc/muxserve/profiles/here.json: is no profile"
    eventually(lambda: wanted in log_after(stack, old), f"the operator says: {wanted}", within=90)
    assert stack.served() == {MEASURED, FITTED}, "what runs runs on"


def log_after(stack: Installed, old: dict[str, Any]) -> str:
    """Of the operator pod that followed `old`."""
    node = stack.cluster.process_node()
    pods = [pod["metadata"] for pod in stack.operator_pods()]
    following = [pod["name"] for pod in pods if pod["uid"] != old["metadata"]["uid"]]
    return "".join(node.log(stack.namespace, name) for name in following)
