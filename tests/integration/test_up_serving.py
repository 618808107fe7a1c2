"""One `muxserve up` with three models: tokens, live changes, crashes, and a clean account."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from load import Ask, Fate, random_asks, run_load
from mux_cli.tiny_models import DEMO, write_demo
from reference_tokens import greedy_tokens
from up_server import UpServer, add_model, fetch, muxserve_up, wait_until

pytestmark = pytest.mark.engine
MODELS = sorted(DEMO)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_demo(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpServer]:
    with muxserve_up(tmp_path_factory.mktemp("up"), checkpoints) as up:
        yield up


def samples(url: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(fetch(url)[1]):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def kv_bytes(server: UpServer) -> dict[str, int]:
    """The unit's account by kind; the models' use under `used`."""
    (unit,) = server.status()["units"]
    account = {"used": 0}
    for name, labels, value in samples(unit["metrics"]):
        if name == "muxserve_unit_kv_bytes":
            account[labels["kind"]] = int(value)
        elif name == "muxserve_model_kv_bytes" and labels["kind"] == "used":
            account["used"] += int(value)
    return account


def assert_pool_is_whole(server: UpServer) -> None:
    """No request holds a block any more, and free + leased = all."""
    wait_until(lambda: kv_bytes(server)["used"] == 0, 15)
    account = kv_bytes(server)
    assert account["free"] + account["leased"] == account["total"], account


def assert_reference(fates: list[Fate], checkpoints: dict[str, Path]) -> None:
    for fate in fates:
        if fate.ask.cancel_after is None:
            wanted = greedy_tokens(checkpoints[fate.ask.model], fate.ask.prompt,
                                   fate.ask.max_tokens)  # fmt: skip
            assert fate.tokens == wanted, (fate, wanted)


def host_pids(server: UpServer, model: str) -> set[int]:
    return {p.pid for p in server.role("mux_runtime.engines") if model in " ".join(p.cmdline())}


def test_all_three_share_one_unit_and_are_listed(server: UpServer) -> None:
    assert server.served() == set(MODELS)
    assert len({server.model(name)["unit"] for name in MODELS}) == 1


@pytest.mark.parametrize("seed", [1, 2])
async def test_greedy_tokens_equal_transformers_while_all_decode_at_once(
    server: UpServer, checkpoints: dict[str, Path], seed: int
) -> None:
    fates = await run_load(server.url, random_asks(seed, MODELS, 30))
    assert [f for f in fates if f.broken] == []
    assert_reference(fates, checkpoints)
    assert_pool_is_whole(server)


def test_the_openai_client_chats_by_stream(server: UpServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=MODELS[0], messages=[{"role": "user", "content": "hello"}], max_tokens=8,
            stream=True, seed=1,
        )  # fmt: skip
        chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_an_unknown_model_names_those_there_are(server: UpServer) -> None:
    body = {"model": "nobody", "prompt": "x"}
    status, text = fetch(f"{server.url}/v1/completions", body)
    assert status == 404
    assert all(name in text for name in MODELS)


async def test_a_killed_engine_host_costs_no_request(
    server: UpServer, checkpoints: dict[str, Path]
) -> None:
    victim, *others = MODELS
    wait_until(lambda: server.served() == set(MODELS))
    asks = random_asks(5, MODELS, 24, within_s=3.0, cancelled=0)
    asks.append(Ask(model=victim, prompt=(7, 8, 9), max_tokens=200, delay_s=0.5))
    before = {name: host_pids(server, name) for name in MODELS}
    load = asyncio.create_task(run_load(server.url, asks))
    await asyncio.sleep(1.5)
    for pid in before[victim]:
        psutil.Process(pid).send_signal(signal.SIGKILL)
    fates = await load
    assert [f for f in fates if f.broken] == []
    assert_reference(fates, checkpoints)
    assert before[victim]
    assert not host_pids(server, victim) & before[victim]
    assert all(host_pids(server, name) == before[name] for name in others)
    assert_pool_is_whole(server)


async def test_a_third_model_comes_and_goes_without_touching_the_others(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    late, *first = MODELS
    with muxserve_up(tmp_path, {name: checkpoints[name] for name in first}) as up:
        before = {p.pid for p in up.tree()}
        add_model(up.manifests, late, checkpoints[late])
        wait_until(lambda: late in up.served())
        assert before <= {p.pid for p in up.tree()}
        assert up.model(late)["unit"] == up.model(first[0])["unit"]

        asks = random_asks(9, first, 24, within_s=3.0, cancelled=0)
        load = asyncio.create_task(run_load(up.url, asks))
        await asyncio.sleep(1.0)
        (up.manifests / f"{late}.yaml").unlink()
        fates = await load
        await asyncio.to_thread(wait_until, lambda: up.served() == set(first))
        assert [f for f in fates if f.broken] == []
        assert_reference(fates, checkpoints)
        wait_until(lambda: not host_pids(up, late))
        assert before <= {p.pid for p in up.tree()}
        assert up.end() == 0
        assert up.leftovers() == []
