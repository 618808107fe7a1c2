"""A unit as it ships: supervisor, pool owner, brain and six torch hosts over three tiny models."""

import asyncio
import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine_builders import MODELS, KnownModel
from mux_cli.tiny_models import write
from unit_tree_builders import Client, UnitTree, member, unit_spec

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
NAMES = ("llama", "qwen2", "qwen3")
COUNT = 32


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KnownModel]:
    folder = tmp_path_factory.mktemp("models")
    return {n: KnownModel(name=n, folder=write(MODELS[n], folder / n)) for n in NAMES}


@pytest.fixture(scope="module")
def tree(
    tmp_path_factory: pytest.TempPathFactory, known: dict[str, KnownModel]
) -> Iterator[UnitTree]:
    members = [member(n, known[n].folder) for n in NAMES]
    unit = UnitTree(tmp_path_factory.mktemp("unit"), unit_spec(members))
    unit.start()
    yield unit
    code, alive = unit.stop()
    assert (code, alive) == (0, [])
    assert list(unit.run_dir.glob("*.sock")) == []


class Load:
    """Requests of known answers on all models, arriving and leaving at random (seeded)."""

    def __init__(self, client: Client, known: dict[str, KnownModel], seed: int) -> None:
        self.client, self.known, self.random = client, known, random.Random(seed)
        self.finished = dict.fromkeys(known, 0)

    async def run(self, count: int, *, pause_s: float = 0.03) -> None:
        async with asyncio.TaskGroup() as group:
            for index in range(count):
                group.create_task(self._one(NAMES[index % 3], index))
                await asyncio.sleep(self.random.random() * pause_s)

    async def _one(self, name: str, index: int) -> None:
        length = (3, 17, 40)[index // 3 % 3]
        prompt, expected = self.known[name].sure_prompt(length, COUNT)
        stop_after = self.random.choice([None, None, None, 1, 9])
        got = await self.client.tokens(name, prompt, COUNT, stop_after=stop_after)
        assert tuple(got) == expected[: len(got)], name
        if stop_after is None:
            assert len(got) == COUNT
            self.finished[name] += 1


def warm(known: dict[str, KnownModel]) -> None:
    """Asks transformers first, so that it does not run beside the load."""
    for model in known.values():
        for length in (3, 17, 40):
            model.sure_prompt(length, COUNT)


async def assert_nothing_leaked(client: Client) -> None:
    await client.idle()
    bugs = await client.metric("muxserve_unit_invariant_violations_total")
    assert sum(bugs.values()) == 0, client.tree.logs()


async def test_all_three_models_give_transformers_tokens_under_random_load(
    tree: UnitTree, known: dict[str, KnownModel]
) -> None:
    warm(known)
    async with tree.client() as client:
        await client.serving(*NAMES)
        load = Load(client, known, seed=5)
        await load.run(45)
        assert min(load.finished.values()) > 0
        await assert_nothing_leaked(client)
        status = await client.status()
        assert {m.model: m.counters.finished > 0 for m in status.members} == dict.fromkeys(
            NAMES, True
        )


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_kill_of_an_engine_host_under_load_changes_no_token(
    tree: UnitTree, known: dict[str, KnownModel], phase: str
) -> None:
    warm(known)
    async with tree.client() as client:
        status = await client.serving(*NAMES)
        victim = next(m for m in status.members if m.model == "qwen2")
        before = {m.model: sum(h.restarts for h in m.hosts) for m in status.members}
        host = next(h for h in victim.hosts if h.phase == phase)
        load = asyncio.create_task(Load(client, known, seed=6).run(36))
        await asyncio.sleep(0.4)
        os.kill(host.pid, signal.SIGKILL)
        await load
        status = await client.until(lambda s: all(
            h.state == "Ready" for m in s.members for h in m.hosts))  # fmt: skip
        after = {m.model: sum(h.restarts for h in m.hosts) for m in status.members}
        assert after == before | {"qwen2": before["qwen2"] + 1}
        await assert_nothing_leaked(client)


async def test_a_model_leaves_and_comes_back_under_load_of_the_others(
    tree: UnitTree, known: dict[str, KnownModel]
) -> None:
    warm(known)
    async with tree.client() as client:
        full = await client.serving(*NAMES)
        members = list(tree.spec.members)
        rest = {n: known[n] for n in NAMES if n != "qwen3"}

        async def stream() -> None:
            while not done.is_set():
                for name in rest:
                    prompt, expected = known[name].sure_prompt(17, COUNT)
                    assert tuple(await client.tokens(name, prompt, COUNT)) == expected

        done = asyncio.Event()
        load = asyncio.gather(*(stream() for _ in range(3)))
        reply = await client.apply(*(m for m in members if m.model != "qwen3"))
        assert reply.accepted, reply
        gone = await client.until(lambda s: s.applied_generation == reply.generation)
        assert [m.model for m in gone.members] == ["llama", "qwen2"]
        assert gone.weights_bytes < full.weights_bytes
        reply = await client.apply(*members)
        assert reply.accepted, reply
        await client.serving(*NAMES)
        prompt, expected = known["qwen3"].sure_prompt(17, COUNT)
        assert tuple(await client.tokens("qwen3", prompt, COUNT)) == expected
        done.set()
        await load
        back = await client.until(lambda s: s.applied_generation == reply.generation)
        assert back.weights_bytes == full.weights_bytes
        await assert_nothing_leaked(client)


async def test_shares_and_quotas_change_without_new_hosts(tree: UnitTree) -> None:
    async with tree.client() as client:
        before = await client.serving(*NAMES)
        members = [replace(m, decode_percent=20, kv_guaranteed_bytes=4 << 20)
                   for m in tree.spec.members]  # fmt: skip
        reply = await client.apply(*members)
        assert reply.accepted, reply
        after = await client.until(lambda s: s.applied_generation == reply.generation)
        assert [m.kv_guaranteed_bytes for m in after.members] == [4 << 20] * 3
        assert {h.pid for m in after.members for h in m.hosts} == {
            h.pid for m in before.members for h in m.hosts}  # fmt: skip
        percents = {(h.phase, h.planned_percent) for m in after.members for h in m.hosts}
        assert percents == {("prefill", 60), ("decode", 20)}
        assert (await client.apply(*(replace(m, kv_guaranteed_bytes=0) for m in members))).accepted


async def test_what_cannot_be_is_refused_and_changes_nothing(tree: UnitTree) -> None:
    async with tree.client() as client:
        before = await client.serving(*NAMES)
        members = list(tree.spec.members)
        cases = [
            ("UnitRefusedSpec", "memory_bytes is 67108864 and 1 is wanted",
             await client.apply(*members, memory_bytes=1)),
            ("UnitRefusedSpec", "tensor 2; this runtime runs a model on 1 GPU",
             await client.apply(replace(members[0], tensor=2))),
            ("DoesNotFit", "the unit has 64.0 MiB",
             await client.apply(replace(members[0], kv_guaranteed_bytes=70 << 20))),
        ]  # fmt: skip
        for reason, message, reply in cases:
            assert (reply.accepted, reply.reason) == (False, reason)
            assert message in reply.message
        after = await client.status()
        assert after.generation == before.generation


@pytest.mark.parametrize("damage", ["truncated", "unsupported", "missing", "tokenizer"])
async def test_a_broken_checkpoint_fails_alone(
    tree: UnitTree, known: dict[str, KnownModel], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / damage
    reason = break_checkpoint(known["llama"].folder, folder, damage)
    async with tree.client() as client:
        await client.serving(*NAMES)
        members = list(tree.spec.members)
        assert (await client.apply(*members, member("broken", folder))).accepted
        status = await client.until(lambda s: any(
            m.model == "broken" and m.state == "Failed" for m in s.members))  # fmt: skip
        broken = next(m for m in status.members if m.model == "broken")
        assert (broken.permanent, broken.reason) == (True, reason), broken
        prompt, expected = known["qwen2"].sure_prompt(17, COUNT)
        assert tuple(await client.tokens("qwen2", prompt, COUNT)) == expected
        reply = await client.apply(*members)
        await client.until(lambda s: s.applied_generation == reply.generation)
        await assert_nothing_leaked(client)


def break_checkpoint(source: Path, folder: Path, damage: str) -> str:
    """A damaged copy and the reason it fails with."""
    shutil.copytree(source, folder)
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
        return "CorruptCheckpoint"
    if damage == "unsupported":
        config = folder / "config.json"
        config.write_text(config.read_text().replace("LlamaForCausalLM", "MambaForCausalLM"))
        return "UnsupportedModel"
    if damage == "tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
        return "TokenizerMissing"
    shutil.rmtree(folder)
    return "CorruptCheckpoint"


async def test_a_brain_that_dies_comes_back_with_the_weights_still_loaded(
    tree: UnitTree, known: dict[str, KnownModel]
) -> None:
    async with tree.client() as client:
        before = await client.serving(*NAMES)
        brain = next(p for p in tree.processes() if "brain" in p.cmdline())
        brain.kill()
        after = await client.until(lambda s: s.start_id != before.start_id and all(
            m.state == "Serving" for m in s.members) and len(s.members) == 3)  # fmt: skip
        assert after.generation == before.generation
        prompt, expected = known["llama"].sure_prompt(17, COUNT)
        assert tuple(await client.tokens("llama", prompt, COUNT)) == expected


async def test_a_killed_unit_leaves_nothing_and_starts_again_in_place(
    tmp_path: Path, known: dict[str, KnownModel]
) -> None:
    unit = UnitTree(tmp_path, unit_spec([member("qwen2", known["qwen2"].folder)]))
    prompt, expected = known["qwen2"].sure_prompt(17, COUNT)
    try:
        unit.start()
        async with unit.client() as client:
            await client.serving("qwen2")
            running = asyncio.create_task(client.tokens("qwen2", prompt, 400))
            await client.until(lambda s: s.members[0].running == 1)
            code, alive = unit.stop(signal.SIGKILL)
            assert (code, alive) == (-signal.SIGKILL, [])
            await asyncio.gather(running, return_exceptions=True)
        unit.start()
        async with unit.client() as client:
            await client.serving("qwen2")
            running = asyncio.create_task(client.tokens("qwen2", prompt, COUNT))
            await client.until(lambda s: s.members[0].running == 1 or running.done())
            code, alive = await asyncio.to_thread(unit.stop)
            assert (code, alive) == (0, [])
            assert tuple(await running) == expected
    finally:
        unit.kill()
