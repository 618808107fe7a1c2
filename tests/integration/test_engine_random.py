"""Random work on a prefill and a decode host over one small pool: no rule broken, no token changed.

The driver asserts the rules after every step; here requests arrive, are moved, cancelled, preempted
and set back in any order, and what is not cancelled ends with transformers' tokens.
"""

import random
from dataclasses import dataclass, field

import pytest

from engine_builders import (
    DECODE,
    MODELS,
    PREFILL,
    Driver,
    KnownModel,
    World,
    greedy,
    torch_host,
)
from mux_cli.tiny_models import write
from mux_core.engine import Finish, KVHandoff

pytestmark = pytest.mark.engine
OUTPUTS = 10


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> KnownModel:
    folder = tmp_path_factory.mktemp("random") / "qwen3"
    return KnownModel("qwen3", write(MODELS["qwen3"], folder))


@dataclass
class Chaos:
    """One seed's run. `expected` are the requests not cancelled; `tokens` what they have."""

    model: KnownModel
    world: World
    prefill: Driver
    decode: Driver
    rng: random.Random
    expected: dict[str, tuple[int, ...]] = field(default_factory=dict)
    prompts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    done: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def arrive(self) -> None:
        rid = f"r{len(self.prompts)}"
        prompt, tokens = self.model.sure_prompt(self.rng.choice((1, 7, 8, 9, 20)), OUTPUTS)
        self.prompts[rid], self.expected[rid] = prompt, tokens
        self.prefill.add(rid, prompt, greedy(OUTPUTS), detach=True)

    def step(self) -> None:
        driver, phase = self.rng.choice(((self.prefill, PREFILL), (self.decode, DECODE)))
        driver.step(phase, budget=self.rng.choice((0, 1, 5, 32)), seqs=self.rng.choice((0, 1, 4)),
                    rows=self.rng.choice((0, 1, 3)))  # fmt: skip
        self.collect()

    def collect(self) -> None:
        """Moves what was handed off, and keeps what has finished."""
        for rid, kv in list(self.prefill.handoffs.items()):
            del self.prefill.handoffs[rid]
            self.move(rid, kv, self.prefill.requests.pop(rid).output)
        for rid, tracked in list(self.decode.requests.items()):
            if tracked.finish is not None:
                assert tracked.finish is Finish.LENGTH
                self.done[rid] = self.decode.requests.pop(rid).output

    def move(self, rid: str, kv: KVHandoff, output: tuple[int, ...]) -> None:
        if len(output) >= OUTPUTS:
            self.done[rid] = output
            self.world.give_back(kv.rows, self.prefill.geometry)
            return
        prompt = self.prompts[rid]
        self.decode.add(rid, (*prompt, *output), greedy(OUTPUTS), prompt_len=len(prompt), kv=kv)

    def leave(self, driver: Driver) -> tuple[str, tuple[int, ...], KVHandoff] | None:
        """Takes any request off a host."""
        if not driver.active:
            return None
        rid = self.rng.choice(sorted(driver.active))
        output = driver.output(rid)
        kv = driver.abort(rid)
        assert kv is not None
        return rid, output, kv

    def cancel(self) -> None:
        if left := self.leave(self.rng.choice((self.prefill, self.decode))):
            rid, _, kv = left
            self.world.give_back(kv.rows, self.prefill.geometry)
            del self.expected[rid]

    def preempt(self) -> None:
        """Sets a request back to recompute everything, its tokens kept."""
        if left := self.leave(self.decode):
            rid, output, kv = left
            self.world.give_back(kv.rows, self.decode.geometry)
            prompt = self.prompts[rid]
            self.prefill.add(rid, (*prompt, *output), greedy(OUTPUTS), prompt_len=len(prompt),
                             detach=True)  # fmt: skip

    def requeue(self) -> None:
        """Takes a request off the decode host and gives it back with its rows."""
        if left := self.leave(self.decode):
            rid, output, kv = left
            self.move(rid, kv, output)

    def settle(self) -> None:
        for driver, phases in ((self.prefill, PREFILL), (self.decode, DECODE)):
            for _ in range(200):
                if driver.active:
                    driver.step(phases)
                    self.collect()
        assert self.done.keys() >= self.expected.keys()


@pytest.mark.parametrize("seed", range(4))
def test_random_operations(qwen: KnownModel, seed: int) -> None:
    world = World(units=12 * 60)
    chaos = Chaos(
        model=qwen, world=world, rng=random.Random(seed),
        prefill=world.drive(torch_host(qwen, world, PREFILL), "qwen3", 1),
        decode=world.drive(torch_host(qwen, world, DECODE), "qwen3", 2),
    )  # fmt: skip
    moves = [chaos.arrive] * 3 + [chaos.step] * 12 + [chaos.cancel, chaos.preempt, chaos.requeue]
    for _ in range(150):
        chaos.rng.choice(moves)()
        world.assert_free_is_poison()
    chaos.settle()
    assert {rid: chaos.done[rid] for rid in chaos.expected} == chaos.expected
    assert len(chaos.expected) > 5
    world.assert_empty()
