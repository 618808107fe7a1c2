"""On a real control plane the load on one of three models rises tenfold; nobody loses a token."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import Cluster
from harness.waiting import eventually
from load import run_load
from mux_cli.tiny_models import write_demo
from operator_builders import llm_manifest
from operator_cluster import Installed, install_crds, installed
from replanning_story import BUSY, LOAD_S, MODELS, SLOTS, asks, check, check_plans, llm_spec

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_demo(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def stack(cluster: Cluster, checkpoints: dict[str, Path]) -> Iterator[Installed]:
    install_crds(cluster)
    folder = next(iter(checkpoints.values())).parent
    with installed(cluster, folder, slots=SLOTS) as install:
        install.kubectl.apply(*(llm_manifest(model, **llm_spec(model)) for model in MODELS))
        install.wait_ready(*MODELS, within=120)
        yield install


def places(stack: Installed, model: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stack.kubectl.get("llm", model)["status"]["placements"]
    return found


def rate(stack: Installed) -> float:
    demand = stack.kubectl.get("llm", BUSY)["status"].get("demand", {})
    return float(demand.get("rate", 0))


def plans(stack: Installed) -> list[dict[str, Any]]:
    """The latest last; one is created a moment before its status is written."""
    found = stack.kubectl.get("placementplans")["items"]
    written = [plan for plan in found if "status" in plan]
    return sorted(written, key=lambda plan: int(plan["metadata"]["name"].rpartition("r")[2]))


def check_figures(stack: Installed) -> None:
    """Predicted and observed of the busy model; what few requests stand behind is not there."""
    statuses = {model: stack.kubectl.get("llm", model)["status"] for model in MODELS}
    for status in statuses.values():
        assert float(status["predicted"]["served"]) > 0
        assert status["predicted"]["costs"] == "data sheet"
    observed = statuses[BUSY]["observed"]
    assert float(observed["rate"]) > 2
    assert float(observed["served"]) > 0
    assert "mean" in observed["ttft"]
    assert "mean" in observed["tpot"]
    assert observed["asOf"]
    assert "attainment" not in observed, "no SLO, so none is met or missed"
    assert all("observed" not in statuses[model] for model in MODELS if model != BUSY)


async def test_a_tenfold_load_is_followed_live_and_what_it_started_stays(
    stack: Installed, checkpoints: dict[str, Path]
) -> None:
    first = stack.unit_pods()
    uids = {pod["metadata"]["uid"] for pod in first}
    assert len(uids) == 1
    before = {model: places(stack, model)[0] for model in MODELS}
    known = len(plans(stack))

    load = asyncio.create_task(run_load(stack.url, asks()))
    await _until(lambda: rate(stack) > 2, "status.demand follows the arrivals", LOAD_S)
    await _until(lambda: len(plans(stack)) > known, "a new PlacementPlan", 10)
    await _until(lambda: len(places(stack, BUSY)) == 2, "a second replica starts", LOAD_S)
    check(await load, checkpoints)
    check_figures(stack)
    await _until(lambda: _serving(stack) == {"Serving"}, "both replicas serve", 90)

    assert uids < {pod["metadata"]["uid"] for pod in stack.unit_pods()}, "no pod was replaced"
    statuses = [s for pod in stack.unit_pods() for s in pod["status"]["containerStatuses"]]
    assert [status["restartCount"] for status in statuses] == [0, 0]
    after = {model: places(stack, model)[0] for model in MODELS}
    assert {place["unit"] for place in after.values()} == {before[BUSY]["unit"]}
    assert after[BUSY]["compute"]["decode"] > before[BUSY]["compute"]["decode"]
    assert int(after[BUSY]["kv"]) > int(before[BUSY]["kv"])
    check_plans(plans(stack))
    assert plans(stack)[-1]["metadata"]["name"] == stack.kubectl.get(
        "gpupool", "default")["status"]["activePlan"]  # fmt: skip

    await asyncio.sleep(6)  # a look later the load has been gone for a while, and nothing went
    assert len(places(stack, BUSY)) == 2
    assert len(stack.unit_pods()) == 2


def _serving(stack: Installed) -> set[str]:
    return {place["state"] for place in places(stack, BUSY)}


async def _until(holds: Any, what: str, within: float) -> None:
    await asyncio.to_thread(eventually, holds, what, within=within, every=0.5)
