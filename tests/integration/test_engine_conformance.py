"""What every engine back-end must do, whatever it is made of.

Each case gets a factory of open hosts; `engine_builders.Driver` asserts the rules of the interface
after every step. Free head units hold NaNs, so a stray read spoils tokens and a stray write shows.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine_builders import (
    BOTH,
    DECODE,
    PREFILL,
    Driver,
    KnownModel,
    MakeHost,
    World,
    greedy,
    torch_cuda_host,
    torch_host,
    write_known_models,
)
from mux_core.engine import Finish, Grant, KVHandoff, Sampling
from mux_runtime.engines.host import BadGrant, RequestRefused
from sim_host_builders import sim_host, simulated_models

pytestmark = pytest.mark.engine

BACKENDS: dict[str, MakeHost] = {"torch-cpu": torch_host, "torch-cuda": torch_cuda_host,
                                 "simulator": sim_host}  # fmt: skip
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
WITH_WEIGHTS = ["torch-cpu", pytest.param("torch-cuda", marks=[pytest.mark.gpu, ON_GPU])]
has_weights = pytest.mark.parametrize("backend", WITH_WEIGHTS, indirect=True)
OUTPUTS = 32


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KnownModel]:
    return write_known_models(Path(tmp_path_factory.mktemp("models")))


@pytest.fixture(params=[*WITH_WEIGHTS, "simulator"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def models(backend: str, request: pytest.FixtureRequest) -> dict[str, KnownModel]:
    if backend == "simulator":
        return simulated_models()
    found: dict[str, KnownModel] = request.getfixturevalue("checkpoints")
    return found


@pytest.fixture
def make_host(backend: str) -> MakeHost:
    return BACKENDS[backend]


@pytest.fixture
def world() -> Iterator[World]:
    """A pool of small units, of which every one must be free again when the test ends."""
    made = World()
    yield made
    made.assert_empty()


@pytest.fixture
def llama(models: dict[str, KnownModel]) -> KnownModel:
    return models["llama"]


@pytest.fixture
def driver(make_host: MakeHost, llama: KnownModel, world: World) -> Driver:
    """One host of the Llama, granted both phases."""
    return world.drive(make_host(llama, world, BOTH), "llama")


def pair(make_host: MakeHost, model: KnownModel, world: World) -> tuple[Driver, Driver]:
    """A prefill and a decode host of one model."""
    return (world.drive(make_host(model, world, PREFILL), model.name, 1),
            world.drive(make_host(model, world, DECODE), model.name, 2))  # fmt: skip


def cross(rid: str, prefill: Driver, decode: Driver, sampling: Sampling) -> None:
    """Has `decode` adopt what `prefill` handed off."""
    sent = prefill.requests[rid]
    kv = prefill.handoffs.pop(rid)
    decode.add(rid, sent.tokens, sampling, prompt_len=sent.prompt_len, kv=kv, detach=True)


def give_back(world: World, driver: Driver, kv: KVHandoff | None) -> None:
    assert kv is not None
    world.give_back(kv.rows, driver.geometry)


@has_weights
class TestGreedyTokens:
    """K1, K2: tokens are transformers' tokens, however the work is cut and moved."""

    @pytest.mark.parametrize("unit_bytes", [2048, 16384])
    @pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
    def test_equal_transformers(
        self, make_host: MakeHost, models: dict[str, KnownModel], name: str, unit_bytes: int
    ) -> None:
        world = World(units=4096 * 2048 // unit_bytes, unit_bytes=unit_bytes)
        driver = world.drive(make_host(models[name], world, BOTH), name)
        block = driver.geometry.block_tokens
        expected = {}
        for length in (1, block - 1, block + 1, 2 * block):
            prompt, tokens = models[name].sure_prompt(length, OUTPUTS)
            driver.add(f"p{length}", prompt, greedy(OUTPUTS))
            expected[f"p{length}"] = tokens
        driver.run(budget=96)
        assert {rid: driver.output(rid) for rid in expected} == expected
        assert all(t.finish is Finish.LENGTH for t in driver.requests.values())
        world.assert_empty()

    def test_split_between_two_hosts_are_the_same(
        self, make_host: MakeHost, models: dict[str, KnownModel], world: World
    ) -> None:
        model = models["qwen3"]
        prefill, decode = pair(make_host, model, world)
        prompt, tokens = model.sure_prompt(21, OUTPUTS)
        prefill.add("a", prompt, greedy(OUTPUTS), detach=True)
        prefill.run(PREFILL, budget=6)
        cross("a", prefill, decode, greedy(OUTPUTS))
        decode.run(DECODE)
        assert decode.output("a") == tokens
        give_back(world, decode, decode.handoffs["a"])

    def test_recomputed_from_emitted_tokens_are_the_same(
        self, driver: Driver, llama: KnownModel, world: World
    ) -> None:
        prompt, tokens = llama.sure_prompt(20, OUTPUTS)
        driver.add("a", prompt, greedy(OUTPUTS))
        for _ in range(9):
            driver.step()
        emitted = driver.output("a")
        give_back(world, driver, driver.abort("a"))
        driver.add("a", (*prompt, *emitted), greedy(OUTPUTS), prompt_len=len(prompt))
        driver.run()
        assert 0 < len(emitted) < OUTPUTS
        assert driver.output("a") == tokens


class TestGrants:
    """K3, K4: budgets, sequences and phases bound what runs and change no token."""

    @pytest.mark.parametrize("seqs", [1, 2, 4])
    @pytest.mark.parametrize("budget", [2, 5, 16, 64])
    def test_any_budget_gives_the_same_tokens(
        self, driver: Driver, llama: KnownModel, budget: int, seqs: int
    ) -> None:
        asked = {f"p{length}": llama.sure_prompt(length, 6) for length in (3, 16, 17, 40)}
        for rid, (prompt, _) in asked.items():
            driver.add(rid, prompt, greedy(6))
        prefilled = decoded = 0
        while driver.active:
            result = driver.step(budget=budget, seqs=seqs)
            prefilled += result.prefill_tokens
            decoded += result.decode_tokens
        assert {rid: driver.output(rid) for rid in asked} == {r: t for r, (_, t) in asked.items()}
        assert prefilled == 3 + 16 + 17 + 40
        assert decoded == 4 * 5

    def test_decodes_run_before_prefills_in_order_of_arrival(
        self, driver: Driver, llama: KnownModel
    ) -> None:
        driver.add("old", llama.prompt(4), greedy(8))
        driver.step()
        driver.add("second", llama.prompt(10), greedy(1))
        driver.add("third", llama.prompt(10), greedy(1))
        result = driver.step(budget=12)
        assert (result.decode_tokens, result.prefill_tokens) == (1, 11)
        assert [output.rid for output in result.outputs] == ["old", "second"]
        driver.run()

    def test_no_phase_runs_nothing(self, driver: Driver, llama: KnownModel) -> None:
        driver.add("a", llama.prompt(5), greedy(2))
        result = driver.step(frozenset())
        assert (result.prefill_tokens, result.decode_tokens, result.used) == (0, 0, 0)
        assert result.more
        driver.run()

    @pytest.mark.parametrize("grant", [{"budget": 0}, {"seqs": 0}])
    def test_an_empty_grant_runs_nothing(
        self, driver: Driver, llama: KnownModel, grant: dict[str, int]
    ) -> None:
        driver.add("a", llama.prompt(5), greedy(2))
        result = driver.step(**grant)
        assert (result.prefill_tokens, result.used, result.starved) == (0, 0, False)
        driver.run()

    def test_each_phase_runs_its_own_requests_alone(
        self, driver: Driver, llama: KnownModel
    ) -> None:
        driver.add("old", llama.prompt(5), greedy(4))
        driver.step()
        driver.add("new", llama.prompt(7), greedy(2))
        assert driver.step(PREFILL).prefill_tokens == 7
        assert driver.step(DECODE).decode_tokens == 2
        driver.run()

    def test_an_adopted_request_decodes_and_is_no_prefill(
        self, make_host: MakeHost, llama: KnownModel, world: World
    ) -> None:
        prefill, decode = pair(make_host, llama, world)
        prefill.add("a", llama.prompt(9), greedy(3), detach=True)
        prefill.run(PREFILL)
        cross("a", prefill, decode, greedy(3))
        assert decode.step(PREFILL).prefill_tokens == 0
        assert decode.step(DECODE).decode_tokens == 1
        decode.run(DECODE)
        give_back(world, decode, decode.handoffs["a"])

    @pytest.mark.parametrize(
        "bad",
        [{"step": 9}, {"step": 0}, {"token_budget": -1}, {"max_seqs": -1}, {"lease": ((1, 2),)},
         {"lease": ((0, 4, 8, 12), (0, 4, 8, 12))}, {"lease": ((0, 4, 8, 1 << 40),)},
         {"lease": ((-1, 4, 8, 12),)}],
    )  # fmt: skip
    def test_a_bad_grant_is_refused_before_any_work(
        self, driver: Driver, llama: KnownModel, bad: dict[str, object]
    ) -> None:
        driver.add("a", llama.prompt(5), greedy(2))
        driver.step(frozenset())
        good = {"step": driver.last_step + 1, "phases": BOTH, "token_budget": 8, "max_seqs": 8}
        with pytest.raises(BadGrant):
            driver.host.step(Grant(**{**good, **bad}))  # type: ignore[arg-type]
        driver.run()

    def test_leasing_an_owned_row_is_a_bad_grant(self, driver: Driver, llama: KnownModel) -> None:
        driver.add("a", llama.prompt(5), greedy(2))
        driver.step()
        owned = next(iter(driver.owned))
        with pytest.raises(BadGrant, match="holds"):
            driver.host.step(Grant(step=driver.last_step + 1, phases=BOTH, token_budget=1,
                                   max_seqs=1, lease=(owned,)))  # fmt: skip
        driver.run()


class TestHandoff:
    """K5: rows change owner, bytes stay where they are."""

    @pytest.mark.parametrize("edge", ["1", "T-1", "T", "T+1", "2T", "2T+1"])
    @pytest.mark.parametrize("name", ["llama", "qwen3"])
    def test_around_block_edges(
        self, make_host: MakeHost, models: dict[str, KnownModel], world: World, name: str, edge: str
    ) -> None:
        model = models[name]
        prefill, decode = pair(make_host, model, world)
        block = prefill.geometry.block_tokens
        length = {"1": 1, "T-1": block - 1, "T": block, "T+1": block + 1, "2T": 2 * block,
                  "2T+1": 2 * block + 1}[edge]  # fmt: skip
        prompt, tokens = model.sure_prompt(length, 2 * block + 2)
        prefill.add("a", prompt, greedy(len(tokens)), detach=True)
        prefill.run(PREFILL)
        kv = prefill.handoffs["a"]
        assert prefill.requests["a"].finish is Finish.HANDOFF
        assert kv.num_tokens == length
        assert prefill.owned == set()

        filled = kv.rows[: length // block]
        before = world.pool.read(filled, prefill.geometry)
        cross("a", prefill, decode, greedy(len(tokens)))
        first = decode.step(DECODE)
        assert (first.decode_tokens, first.prefill_tokens) == (1, 0)
        assert world.pool.read(filled, prefill.geometry) == before
        decode.run(DECODE)
        assert decode.output("a") == tokens
        assert decode.handoffs["a"].rows[: len(kv.rows)] == kv.rows
        give_back(world, decode, decode.handoffs["a"])

    @pytest.mark.parametrize(
        ("sampling", "finish"),
        [(greedy(1), Finish.LENGTH), (Sampling(max_tokens=9, temperature=0.0), Finish.STOP)],
    )
    def test_a_first_token_that_ends_the_request_says_so(
        self, make_host: MakeHost, llama: KnownModel, world: World, sampling: Sampling,
        finish: Finish,
    ) -> None:  # fmt: skip
        host = world.drive(make_host(llama, world, PREFILL), "llama")
        prompt, tokens = llama.sure_prompt(6, 4)
        ends = Sampling(max_tokens=sampling.max_tokens, temperature=0.0, stop_token_ids=tokens[:1])
        host.add("a", prompt, ends if finish is Finish.STOP else sampling, detach=True)
        host.run(PREFILL)
        assert host.requests["a"].finish is finish
        give_back(world, host, host.handoffs["a"])


class TestSharedPool:
    """K6: models of different shapes in one pool."""

    def test_three_geometries_interleaved(
        self, make_host: MakeHost, models: dict[str, KnownModel], world: World
    ) -> None:
        expected: dict[str, tuple[int, ...]] = {}
        drivers = [world.drive(make_host(models[name], world, BOTH), name)
                   for name in ("llama", "qwen2", "qwen3")]  # fmt: skip
        for driver in drivers:
            for length in (3, 17, 33):
                rid = f"{driver.owner.member}{length}"
                prompt, expected[rid] = models[driver.owner.member].sure_prompt(length, 12)
                driver.add(rid, prompt, greedy(12))
        while any(driver.active for driver in drivers):
            for driver in drivers:
                driver.step(budget=7)
            world.assert_free_is_poison()
            self.assert_one_owner_each(drivers)
        got = {rid: d.output(rid) for d in drivers for rid in d.requests}
        assert got == expected

    @staticmethod
    def assert_one_owner_each(drivers: list[Driver]) -> None:
        units = [unit for d in drivers for row in d.owned for run in row
                 for unit in range(run, run + d.geometry.run_units)]  # fmt: skip
        assert len(set(units)) == len(units)


class TestExhaustion:
    """K7: a lack of rows holds requests and breaks none."""

    def test_an_empty_lease_holds_and_says_starved(self, driver: Driver, llama: KnownModel) -> None:
        prompt, tokens = llama.sure_prompt(20, 4)
        driver.add("a", prompt, greedy(4))
        result = driver.step(rows=0)
        assert (result.starved, result.prefill_tokens, result.more) == (True, 0, True)
        assert result.need_rows == driver.geometry.rows_for(20)
        driver.run()
        assert driver.output("a") == tokens

    def test_a_prefill_runs_as_far_as_its_rows_reach(
        self, driver: Driver, llama: KnownModel
    ) -> None:
        block = driver.geometry.block_tokens
        prompt, tokens = llama.sure_prompt(2 * block + 5, 4)
        driver.add("a", prompt, greedy(4))
        result = driver.step(rows=1, budget=100)
        assert (result.prefill_tokens, result.used, result.starved) == (block, 1, True)
        assert result.need_rows == 2
        driver.run()
        assert driver.output("a") == tokens

    def test_a_decode_at_a_block_edge_waits_and_others_go_on(
        self, driver: Driver, llama: KnownModel
    ) -> None:
        block = driver.geometry.block_tokens
        asked = {"edge": llama.sure_prompt(block, 4), "free": llama.sure_prompt(3, 4)}
        for rid, (prompt, _) in asked.items():
            driver.add(rid, prompt, greedy(4))
        driver.step()
        result = driver.step(rows=0)
        assert [output.rid for output in result.outputs] == ["free"]
        assert (result.starved, result.need_rows) == (True, 1)
        driver.run()
        assert {rid: driver.output(rid) for rid in asked} == {r: t for r, (_, t) in asked.items()}

    def test_a_small_pool_serves_more_than_it_holds(
        self, make_host: MakeHost, llama: KnownModel
    ) -> None:
        world = World(units=8 * 16)
        driver = world.drive(make_host(llama, world, BOTH), "llama")
        asked = {str(index): llama.sure_prompt(30 + index, 8) for index in range(6)}
        for rid, (prompt, _) in asked.items():
            driver.add(rid, prompt, greedy(8))
        # Rows go to whoever was added first, so two at a time never block each other.
        driver.run(seqs=2)
        assert {rid: driver.output(rid) for rid in asked} == {r: t for r, (_, t) in asked.items()}
        world.assert_empty()


class TestAbort:
    """K8: a request leaves at any moment with exactly its rows."""

    def test_unknown_and_twice(self, driver: Driver, llama: KnownModel) -> None:
        assert driver.host.abort("nobody") is None
        driver.add("a", llama.prompt(5), greedy(2))
        assert driver.abort("a") == KVHandoff(geometry=driver.geometry, rows=(), num_tokens=0)
        assert driver.host.abort("a") is None

    @pytest.mark.parametrize("steps", [0, 1, 3, 6])
    def test_others_are_unchanged(
        self, driver: Driver, llama: KnownModel, world: World, steps: int
    ) -> None:
        """Queued, in the middle of its prefill, at its end, and decoding."""
        prompt, tokens = llama.sure_prompt(18, 12)
        driver.add("gone", llama.prompt(40), greedy(20))
        driver.add("kept", prompt, greedy(12))
        for _ in range(steps):
            driver.step(budget=16)
        kv = driver.abort("gone")
        assert kv is not None
        assert len(kv.rows) == driver.geometry.rows_for(kv.num_tokens)
        give_back(world, driver, kv)
        driver.run(budget=16)
        assert driver.output("kept") == tokens

    @pytest.mark.parametrize("steps", [1, 2, 5])
    def test_added_again_with_its_rows_it_goes_on(
        self, driver: Driver, llama: KnownModel, steps: int
    ) -> None:
        prompt, tokens = llama.sure_prompt(40, 8)
        driver.add("a", prompt, greedy(8))
        for _ in range(steps):
            driver.step(budget=16)
        emitted, kv = driver.output("a"), driver.abort("a")
        assert kv is not None
        driver.add("a", (*prompt, *emitted), greedy(8), prompt_len=40, kv=kv)
        rest = 0
        while driver.active:
            rest += driver.step().prefill_tokens
        assert rest == max(0, 40 - kv.num_tokens)
        assert driver.output("a") == tokens

    def test_an_adopted_request_before_its_first_step(
        self, make_host: MakeHost, llama: KnownModel, world: World
    ) -> None:
        prefill, decode = pair(make_host, llama, world)
        prefill.add("a", llama.prompt(9), greedy(3), detach=True)
        prefill.run(PREFILL)
        kv = prefill.handoffs["a"]
        cross("a", prefill, decode, greedy(3))
        assert decode.abort("a") == kv
        give_back(world, decode, kv)


class TestRefusals:
    """K9: what cannot be served is refused by name; nothing else changes."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rid": "taken"}, "already"),
            ({"token_ids": ()}, "prompt_len"),
            ({"token_ids": (1, 2, 9999)}, "9999"),
            ({"token_ids": (-1, 2)}, "-1"),
            ({"token_ids": (1,) * 2048}, "2048"),
            ({"prompt_len": 0}, "prompt_len"),
            ({"prompt_len": 9}, "prompt_len"),
            ({"token_ids": (1, 2, 3, 4, 5), "prompt_len": 3}, "max_tokens"),
        ],
    )
    def test_of_a_request(
        self, driver: Driver, llama: KnownModel, change: dict[str, object], message: str
    ) -> None:
        driver.add("taken", llama.prompt(3), greedy(2))
        asked = {
            "rid": "new",
            "token_ids": (1, 2),
            "sampling": greedy(2),
            "prompt_len": 2,
            **change,
        }
        if "token_ids" in change and "prompt_len" not in change:
            asked["prompt_len"] = len(change["token_ids"])  # type: ignore[arg-type]
        with pytest.raises(RequestRefused, match=message):
            driver.host.add(**asked)  # type: ignore[arg-type]
        assert driver.host.stats().waiting == 1
        driver.run()

    @pytest.mark.parametrize(
        "field",
        [{"max_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0},
         {"top_p": 1.1}, {"top_k": -2}, {"min_p": 1.5}, {"presence_penalty": 3.0},
         {"frequency_penalty": -3.0}, {"repetition_penalty": 0.0}, {"min_tokens": 9},
         {"logprobs": 21}, {"stop_token_ids": (99999,)}],
    )  # fmt: skip
    def test_of_a_sampling_value_names_it(self, driver: Driver, field: dict[str, object]) -> None:
        with pytest.raises(RequestRefused, match=next(iter(field))):
            driver.host.add("a", (1, 2), Sampling(**{"max_tokens": 4, **field}), prompt_len=2)  # type: ignore[arg-type]

    def test_of_rows_leaves_them_the_callers(
        self, driver: Driver, llama: KnownModel, world: World
    ) -> None:
        driver.add("owner", llama.prompt(3), greedy(4))
        driver.step()
        g = driver.geometry
        taken = tuple(driver.owned)
        mine = world.allocator.lease(driver.owner, g, 2)
        other = type(g)(layers=2, kv_heads=4, head_dim=g.head_dim, dtype=g.dtype,
                        block_tokens=g.block_tokens, run_units=8)  # fmt: skip
        refused = {
            "geometry": KVHandoff(geometry=other, rows=mine, num_tokens=4),
            "owned": KVHandoff(geometry=g, rows=taken, num_tokens=4),
            "twice": KVHandoff(geometry=g, rows=(mine[0], mine[0]), num_tokens=4),
            "short row": KVHandoff(geometry=g, rows=(mine[0][:1],), num_tokens=4),
            "too few": KVHandoff(geometry=g, rows=mine[:1], num_tokens=g.block_tokens + 1),
            "nothing left to run": KVHandoff(geometry=g, rows=mine, num_tokens=20),
            "part-filled and shared": KVHandoff(geometry=g, rows=mine, num_tokens=4, shared_rows=1),
        }
        for kv in refused.values():
            with pytest.raises(RequestRefused):
                driver.host.add("new", llama.prompt(20), greedy(4), prompt_len=20, kv=kv)
        assert driver.host.stats().owned_rows == len(taken)
        world.allocator.free(mine, g)
        driver.run()


class TestSharedRows:
    """K10: cached prefixes are read, never written or freed."""

    def test_two_requests_start_after_one_prefix(
        self, driver: Driver, llama: KnownModel, world: World
    ) -> None:
        block = driver.geometry.block_tokens
        prompt, tokens = llama.sure_prompt(2 * block + 3, 8)
        driver.add("first", prompt, greedy(8), detach=True)
        driver.run()
        cached = driver.handoffs["first"]
        prefix = cached.rows[:2]
        world.give_back(cached.rows[2:], driver.geometry)
        kept = world.pool.read(prefix, driver.geometry)
        for rid in ("a", "b"):
            kv = KVHandoff(geometry=driver.geometry, rows=prefix, num_tokens=2 * block,
                           shared_rows=2)  # fmt: skip
            driver.add(rid, prompt, greedy(8), kv=kv)
        prefilled = 0
        while driver.active:
            prefilled += driver.step().prefill_tokens
        assert (driver.output("a"), driver.output("b")) == (tokens, tokens)
        assert prefilled == 2 * 3
        assert world.pool.read(prefix, driver.geometry) == kept
        world.give_back(prefix, driver.geometry)


@has_weights
class TestSampling:
    """K11: draws are reproducible and depend on seed and output index alone."""

    RICH = Sampling(max_tokens=12, temperature=0.9, top_p=0.95, top_k=50, min_p=0.01, seed=7,
                    presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.1,
                    ignore_eos=True, logprobs=2)  # fmt: skip

    def test_a_seed_repeats_in_any_company(self, driver: Driver, llama: KnownModel) -> None:
        driver.add("alone", llama.prompt(9), self.RICH)
        driver.run()
        driver.add("again", llama.prompt(9), self.RICH)
        driver.add("other", llama.prompt(11), greedy(12))
        driver.run(budget=5)
        assert driver.output("again") == driver.output("alone")

    def test_a_moved_request_draws_the_same(
        self, make_host: MakeHost, llama: KnownModel, world: World
    ) -> None:
        whole = world.drive(make_host(llama, world, BOTH), "llama")
        whole.add("a", llama.prompt(9), self.RICH)
        whole.run()
        prefill, decode = pair(make_host, llama, world)
        prefill.add("a", llama.prompt(9), self.RICH, detach=True)
        prefill.run(PREFILL)
        cross("a", prefill, decode, self.RICH)
        decode.run(DECODE)
        assert decode.output("a") == whole.output("a")
        give_back(world, decode, decode.handoffs["a"])

    def test_an_end_is_held_back_until_min_tokens(self, driver: Driver, llama: KnownModel) -> None:
        prompt, tokens = llama.sure_prompt(9, 8)
        stops = {"stop_token_ids": tokens[:1], "max_tokens": 8, "temperature": 0.0,
                 "ignore_eos": True}  # fmt: skip
        driver.add("at once", prompt, Sampling(**stops))  # type: ignore[arg-type]
        driver.add("later", prompt, Sampling(**stops, min_tokens=3))  # type: ignore[arg-type]
        driver.run()
        assert driver.output("at once") == tokens[:1]
        assert driver.requests["at once"].finish is Finish.STOP
        assert tokens[0] not in driver.output("later")[:3]

    def test_logprobs_come_with_every_token(self, driver: Driver, llama: KnownModel) -> None:
        prompt, tokens = llama.sure_prompt(9, 5)
        driver.add("a", prompt, greedy(5, logprobs=3))
        driver.run()
        told = [p for output in driver.requests["a"].outputs for p in output.logprobs]
        assert [p.token for p in told] == list(tokens)
        assert all(p.top[0] == (p.token, p.logprob) and len(p.top) == 3 for p in told)

    def test_the_models_length_ends_a_request(
        self, make_host: MakeHost, llama: KnownModel, world: World
    ) -> None:
        driver = world.drive(make_host(llama, world, BOTH), "llama")
        length = 2048 - 3
        driver.add("a", llama.prompt(length), greedy(100))
        driver.run(budget=2048, rows=200)
        assert driver.requests["a"].finish is Finish.LENGTH
        assert len(driver.output("a")) == 3
