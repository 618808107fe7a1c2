"""`muxserve up` under a load that rises tenfold: rates, plan, live quotas, a replica, no loss."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from load import run_load
from mux_cli.tiny_models import write_demo
from replanning_story import BUSY, LOAD_S, MODELS, SLOTS, asks, check, check_plans, llm_spec
from up_server import UpServer, up_on, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_demo(tmp_path_factory.mktemp("models"))


@pytest.fixture
def server(checkpoints: dict[str, Path], tmp_path: Path) -> Iterator[UpServer]:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    pool = {"runtime": {"device": "CPU"}, "gpu": {"static": SLOTS}}
    write(manifests, "GPUPool", "default", pool)
    for model in MODELS:
        source = {"model": {"uri": f"file://{checkpoints[model]}"}}
        write(manifests, "LLMDeployment", model, {**source, **llm_spec(model)})
    with up_on(manifests, tmp_path / "data") as up:
        up.wait_ready()
        yield up


def write(folder: Path, kind: str, name: str, spec: dict[str, Any]) -> None:
    document = {"apiVersion": "muxserve.io/v1alpha1", "kind": kind, "metadata": {"name": name},
                "spec": spec}  # fmt: skip
    (folder / f"{kind}-{name}.yaml").write_text(yaml.safe_dump(document))


def plans(server: UpServer) -> list[dict[str, Any]]:
    """As written down, the oldest first."""
    files = sorted((server.data / "logs" / "plans").glob("*.json"), key=lambda f: len(f.name))
    return [json.loads(file.read_text()) for file in files]


def places(server: UpServer, model: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.model(model)["placements"]
    return found


async def test_a_tenfold_load_is_followed_live_and_what_it_started_stays(
    server: UpServer, checkpoints: dict[str, Path]
) -> None:
    (unit,) = {place["unit"] for model in MODELS for place in places(server, model)}
    hosts = {process.pid for process in server.role("mux_runtime")}
    before = {model: places(server, model)[0] for model in MODELS}
    known = len(plans(server))

    load = asyncio.create_task(run_load(server.url, asks()))
    await asyncio.to_thread(wait_until, lambda: (server.model(BUSY)["demand"] or 0) > 2, 30)
    await asyncio.to_thread(wait_until, lambda: len(plans(server)) > known, 10)
    await asyncio.to_thread(wait_until, lambda: len(places(server, BUSY)) == 2, LOAD_S)
    check(await load, checkpoints)
    await asyncio.to_thread(wait_until, lambda: {place["state"] for place in places(
        server, BUSY)} == {"Serving"}, 60)  # fmt: skip

    assert hosts <= {process.pid for process in server.role("mux_runtime")}, "nothing restarted"
    after = {model: places(server, model)[0] for model in MODELS}
    assert {place["unit"] for place in after.values()} == {unit}
    assert after[BUSY]["decode_percent"] > before[BUSY]["decode_percent"]
    assert after[BUSY]["kv_bytes"] > before[BUSY]["kv_bytes"]
    assert sum(place["kv_bytes"] for place in after.values()) < 256 << 20
    check_plans(plans(server))

    await asyncio.sleep(6)  # a look later the load has been gone for a while, and nothing went
    assert len(places(server, BUSY)) == 2
    assert server.end() == 0
    assert server.leftovers() == []
