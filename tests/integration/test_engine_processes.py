"""Engine hosts as processes: what is left when one dies, and how one ends (case K12)."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine_builders import MODELS, KnownModel, greedy
from engine_processes import Process, Unit, wait_gone
from mux_cli.tiny_models import write
from mux_core.engine import Finish, KVHandoff, Phase
from mux_core.errors import UnsupportedModel
from mux_runtime.engines.host import BadGrant, EngineFault, RequestRefused
from mux_runtime.engines.torch.start import Settings, TorchStart
from mux_runtime.kvpool.client import PoolClient, Role

pytestmark = pytest.mark.engine
OUTPUTS = 24


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> KnownModel:
    folder = Path(tmp_path_factory.mktemp("processes")) / "llama"
    return KnownModel("llama", write(MODELS["llama"], folder))


@pytest.fixture
async def unit(tmp_path: Path) -> AsyncIterator[Unit]:
    async with Unit(tmp_path) as made:
        yield made


async def finish(
    unit: Unit, process: Process, phase: Phase, rids: set[str]
) -> dict[str, list[int]]:
    """Runs until all `rids` are gone from the host; their new tokens."""
    tokens: dict[str, list[int]] = {rid: [] for rid in rids}
    while rids:
        result = await unit.step(process, phase)
        for output in result.outputs:
            tokens[output.rid].extend(output.tokens)
            rids = rids - {output.rid} if output.finish else rids
    return tokens


async def prefilled(
    unit: Unit, process: Process, rid: str, prompt: tuple[int, ...]
) -> tuple[int, KVHandoff]:
    """The first token of a request and its rows, between two hosts."""
    await process.link.add(rid, prompt, greedy(OUTPUTS), prompt_len=len(prompt), detach=True)
    while True:
        result = await unit.step(process, Phase.PREFILL)
        if result.outputs:
            assert result.outputs[0].finish is Finish.HANDOFF
            return result.outputs[0].tokens[0], result.handoffs[rid]


async def test_a_killed_host_leaves_everybody_else_alone(unit: Unit, llama: KnownModel) -> None:
    """Killed idle, with an adoption under way, in a decode step and in a prefill step."""
    prefill, decode = await asyncio.gather(
        unit.start(llama, Phase.PREFILL, 1), unit.start(llama, Phase.DECODE, 1)
    )
    prompt, tokens = llama.sure_prompt(21, OUTPUTS)

    # Before adoption: the rows belong to nobody's process and survive.
    first, kv = await prefilled(unit, prefill, "a", prompt)
    unit.allocator.retag(kv.rows, prefill.geometry, between := decode.owner._replace(member="x"))
    decode.kill()
    with pytest.raises(EngineFault):
        await decode.link.stats()
    unit.assert_ledger(prefill, Process(owner=between, popen=decode.popen, link=decode.link,
                                        geometry=decode.geometry, owned=set(kv.rows)))  # fmt: skip
    decode = await unit.start(llama, Phase.DECODE, 2)
    await decode.link.add("a", (*prompt, first), greedy(OUTPUTS), prompt_len=len(prompt), kv=kv)
    unit.adopt(decode, kv)

    # In the middle of a decode step: its rows and its lease are reclaimed by epoch.
    emitted = [first]
    for _ in range(5):
        emitted += (await unit.step(decode, Phase.DECODE)).outputs[0].tokens
    lease = unit.lease(decode, 4)
    decode.freeze()
    stepping = asyncio.create_task(decode.step(Phase.DECODE, lease, 8))
    await asyncio.sleep(0)
    decode.kill()
    with pytest.raises(EngineFault):
        await stepping
    reclaimed = unit.allocator.reclaim(decode.owner)
    assert reclaimed == (len(decode.owned) + len(lease)) * decode.geometry.row_units
    unit.assert_ledger(prefill)

    # Recomputed from what was emitted, the request goes on with the same tokens.
    await prefill.link.add("a", (*prompt, *emitted), greedy(OUTPUTS), prompt_len=len(prompt),
                           detach=True)  # fmt: skip
    result = await unit.step(prefill, Phase.PREFILL)
    emitted += result.outputs[0].tokens
    decode = await unit.start(llama, Phase.DECODE, 3)
    kv = result.handoffs["a"]
    await decode.link.add("a", (*prompt, *emitted), greedy(OUTPUTS), prompt_len=len(prompt), kv=kv)
    unit.adopt(decode, kv)
    emitted += (await finish(unit, decode, Phase.DECODE, {"a"}))["a"]
    assert tuple(emitted) == tokens
    unit.assert_ledger(prefill, decode)

    # In the middle of a prefill, and idle.
    await prefill.link.add("b", prompt, greedy(OUTPUTS), prompt_len=len(prompt), detach=True)
    await unit.step(prefill, Phase.PREFILL, budget=8)
    assert len(prefill.owned) == 1
    prefill.kill()
    unit.allocator.reclaim(prefill.owner)
    unit.assert_ledger(decode)
    prefill = await unit.start(llama, Phase.PREFILL, 2)
    assert (await prefilled(unit, prefill, "b", prompt))[0] == tokens[0]
    decode.kill()
    assert unit.allocator.used(decode.owner) == 0


async def test_refusals_cross_the_wire_and_the_host_lives_on(unit: Unit, llama: KnownModel) -> None:
    host = await unit.start(llama, Phase.PREFILL, 1)
    with pytest.raises(RequestRefused, match="99999"):
        await host.link.add("a", (1, 99999), greedy(2), prompt_len=2)
    with pytest.raises(BadGrant, match="lease"):
        await host.step(Phase.PREFILL, [(1, 2, 3)], 8)
    host.steps -= 1
    description = await host.link.describe()
    assert description.geometry == host.geometry
    assert description.eos_token_ids == (2,)
    await host.link.add("a", (1, 2), greedy(1), prompt_len=2)
    assert (await unit.step(host, Phase.PREFILL)).outputs[0].finish is Finish.LENGTH
    await host.link.close()
    assert wait_gone(host.popen) == 0


async def test_a_host_ends_when_its_scheduler_does(unit: Unit, llama: KnownModel) -> None:
    host = await unit.start(llama, Phase.DECODE, 1)
    host.link.disconnect()
    await asyncio.sleep(0)
    assert await asyncio.to_thread(wait_gone, host.popen) == 0


async def test_a_model_nobody_can_run_is_told_before_torch_is_paid_for(
    unit: Unit, llama: KnownModel, tmp_path: Path
) -> None:
    folder = tmp_path / "moe"
    folder.mkdir()
    config = json.loads((llama.folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_local_experts": 8}))
    with pytest.raises(UnsupportedModel, match="num_local_experts is 8"):
        await unit.start(KnownModel("llama", folder), Phase.DECODE, 1)


async def test_hosts_started_at_once_load_once_after_a_loader_died(
    unit: Unit, llama: KnownModel
) -> None:
    """The weights are loaded by one of those left; the other maps them (case K14)."""
    weight_bytes = TorchStart(Settings(
        model_dir=llama.folder, pool="", arena="", phases=frozenset(Phase), unit_bytes=2048,
    )).describe().weight_bytes  # fmt: skip
    with PoolClient.connect(str(unit.folder / "pool.sock")) as loader:
        assert loader.attach(str(llama.folder), weight_bytes).role is Role.LOADER
        opening = [
            asyncio.create_task(unit.start(llama, phase, 1)) for phase in Phase
        ]  # fmt: skip
        await asyncio.sleep(0)
        await asyncio.gather(*unit.helloes.values())
    hosts = await asyncio.gather(*opening)
    with PoolClient.connect(str(unit.folder / "pool.sock")) as client:
        state = client.state()
    assert state.sealed == {str(llama.folder): weight_bytes}
    assert state.loading == {}
    for host in hosts:
        await host.link.add("a", (1, 2), greedy(1), prompt_len=2)
        result = await unit.step(host, Phase.PREFILL)
        assert result.outputs[0].finish is Finish.LENGTH
