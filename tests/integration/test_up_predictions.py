"""`muxserve up` with a measured profile: predicted beside observed, and what it refuses."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from load import Fate, run_load, steady_asks
from mux_cli.demo_files import llm_manifest, write_manifests
from mux_cli.main import main
from mux_cli.tiny_models import write_demo
from mux_core.costmodel.profile_file import dump_profiles
from mux_core.units import parse_seconds
from mux_operator.release import release
from mux_runtime.engines.checkpoint_files import read_model_config
from mux_runtime.profiling.devices import cores, cpu_name
from profile_builders import MADE, model_profile, profile_set
from up_server import UpServer, fetch, up_on, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

RATE = 4.0
"""Requests a second of each model: declared, planned with and sent."""
ROUND_S = 4.0
ROUNDS = 20
SLO = "  slo: {ttft: 5s, tpot: 2s, objective: '90'}\n"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_demo(tmp_path_factory.mktemp("models"))


def profile(folder: Path, checkpoint: Path, **made: object) -> Path:
    """Of one of the models; the others get a fit to it."""
    here = replace(MADE, device=cpu_name(cores()), cores=cores(), release=release())
    model = model_profile("one of them", read_model_config(checkpoint).geometry)
    file = folder / "profile.json"
    file.write_text(dump_profiles(profile_set(model, made=replace(here, **made))))  # type: ignore[arg-type]
    return file


@pytest.fixture
def server(checkpoints: dict[str, Path], tmp_path: Path) -> Iterator[UpServer]:
    manifests = write_manifests(tmp_path / "manifests", checkpoints)
    for name, path in checkpoints.items():
        (manifests / f"{name}.yaml").write_text(llm_manifest(name, path, rate=RATE) + SLO)
    file = profile(tmp_path, checkpoints["tiny-llama"])
    with up_on(manifests, tmp_path / "data", "--profiles", str(file)) as up:
        up.wait_ready()
        yield up


def seconds(text: str) -> float:
    return parse_seconds(text, subject="status")


def all_told(server: UpServer, models: dict[str, Path]) -> bool:
    """Whether every status has all of the observed side, and every error is shown."""
    _, page = fetch(server.status()["metrics"])
    sides = [server.model(name)["observed"] for name in models]
    complete = all({"rate", "attainment", "ttft", "tpot"} <= set(side) for side in sides)
    return complete and page.count("\nmuxserve_plan_prediction_error_ratio{") == len(models)


def check_sides(model: dict[str, Any], fates: list[Fate]) -> None:
    """Both sides are there, and what was observed is what clients could have seen."""
    predicted, observed = model["predicted"], model["observed"]
    assert float(predicted["rate"]) == RATE
    for side in (predicted, observed):
        assert float(side["served"]) > 0
        assert 0 <= float(side["attainment"]) <= 1
        assert min(seconds(side["ttft"]["mean"]), seconds(side["tpot"]["mean"])) > 0
    mine = [fate for fate in fates if fate.ask.model == model["name"]]
    assert seconds(observed["ttft"]["mean"]) <= max(fate.ttft_s for fate in mine)
    assert int(observed["kv"]) >= 0
    assert int(predicted["kv"]) > 0


def as_of(server: UpServer, model: str) -> str:
    return str(server.model(model)["observed"].get("asOf", ""))


async def a_unit_that_starts_anew_invents_nothing(
    server: UpServer, models: dict[str, Path], fates: list[Fate]
) -> None:
    """Its counters begin at zero; rates and latencies stay what clients saw of them."""
    (brain,) = server.role("mux_runtime brain")
    brain.kill()
    await asyncio.to_thread(
        wait_until, lambda: server.role("mux_runtime brain") not in ([], [brain])
    )
    await asyncio.to_thread(wait_until, lambda: all(server.model(m)["ready"] for m in models))
    before = {name: as_of(server, name) for name in models}
    for _ in range(ROUNDS):
        asks = [ask for name in models for ask in steady_asks(name, RATE, ROUND_S)]
        fates += await run_load(server.url, asks)
        if all(as_of(server, name) > before[name] for name in models):
            break
    assert [fate for fate in fates if fate.broken] == []
    for name in models:
        check_sides(server.model(name), fates)
        assert float(server.model(name)["observed"]["served"]) < 2 * RATE


async def test_predicted_and_observed_stand_side_by_side_under_load(
    server: UpServer, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in checkpoints:
        assert server.model(name)["predicted"]["costs"] == (
            "measured" if name == "tiny-llama" else "fitted")  # fmt: skip
        assert server.model(name)["observed"] == {}, "nobody has asked yet"

    fates: list[Fate] = []
    for _ in range(ROUNDS):
        asks = [ask for name in checkpoints for ask in steady_asks(name, RATE, ROUND_S)]
        fates += await run_load(server.url, asks)
        if all_told(server, checkpoints):
            break

    assert [fate for fate in fates if fate.broken] == []
    for name in checkpoints:
        check_sides(server.model(name), fates)
    _, page = fetch(server.status()["metrics"])
    for name in checkpoints:
        labels = f'model="{name}",model_name="{name}",mux_namespace="default",pool="default"'
        for kind in ("predicted", "observed"):
            assert f'muxserve_model_slo_attainment_ratio{{kind="{kind}",{labels}}}' in page
        assert f"muxserve_plan_prediction_error_ratio{{{labels}}}" in page
    assert main(["status", "--data-dir", str(server.data)]) == 0
    told = capsys.readouterr().out
    assert told.count("  predicted arrives 4/s  served 4/s  ttft ") == len(checkpoints)
    assert told.count("  observed  arrives ") == len(checkpoints)

    await a_unit_that_starts_anew_invents_nothing(server, checkpoints, fates)
    assert await asyncio.to_thread(server.end) == 0
    assert server.leftovers() == []


def test_a_profile_of_another_machine_starts_nothing(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifests = write_manifests(tmp_path / "manifests", checkpoints)
    file = profile(tmp_path, checkpoints["tiny-llama"], device="another processor")
    data = tmp_path / "data"
    code = main(["up", "-f", str(manifests), "--profiles", str(file), "--data-dir", str(data)])
    assert code == 2
    said = capsys.readouterr().err
    assert f"profile {file}: measured on another processor, this machine is" in said
    assert "measure here with muxserve profile" in said
    assert not data.exists()
