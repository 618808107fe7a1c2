"""The scheduler over hosts that keep the rules: tokens, rows, cancels, crashes, preemption."""

import asyncio
import random

import pytest

from mux_core.adbs import Limits
from mux_core.engine import Phase
from mux_core.errors import PeerError
from mux_core.lifecycle import MemberState
from mux_core.reasons import Reason
from mux_runtime.generation import ModelNotServing, QueueFull, RequestRefused
from scheduler_builders import (
    ToyScheduler,
    ask,
    collect,
    corrupt,
    expected,
    geometry,
    spec,
    unit,
)

SHAPES = {"a": geometry(2, 1), "b": geometry(3, 2), "c": geometry(1, 4)}


async def start(box: ToyScheduler, *specs: object) -> None:
    for member in specs or [spec(model) for model in box.starter.shapes]:
        box.scheduler.add_member(member)  # type: ignore[arg-type]
    await box.serving(*box.starter.shapes)


async def test_one_request_gets_its_tokens_and_leaves_nothing() -> None:
    box = unit()
    await start(box)
    assert await collect(box, ask("r", count=9)) == expected((1, 2, 3), 9)
    await box.idle()
    assert box.allocator.owned_units == 0
    await box.scheduler.close()


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_a_request_that_ends_with_its_first_tokens(count: int) -> None:
    box = unit()
    await start(box)
    assert await collect(box, ask("r", count=count)) == expected((1, 2, 3), count)
    await box.idle()
    await box.scheduler.close()


@pytest.mark.parametrize("seed", [*range(6), 1060])
async def test_random_arrivals_and_cancels_on_three_members(seed: int) -> None:
    rng = random.Random(seed)
    box = unit(SHAPES, units=rng.choice([96, 160, 400]))
    await start(box)
    await asyncio.gather(*(client(box, rng, index) for index in range(60)))
    await box.idle()
    assert box.scheduler.rounds.bugs == 0
    await box.scheduler.close()


@pytest.mark.parametrize("seed", range(8))
async def test_chaos_hosts_die_members_change_and_every_finished_answer_is_right(seed: int) -> None:
    """Kills, share and floor changes and cancels at random moments; then nothing is left."""
    rng = random.Random(seed)
    box = unit(SHAPES, units=rng.choice([250, 400]), max_crashes=99, tries=99,
               hang_floor_s=0.2, hang_factor=1.0)  # fmt: skip
    await start(box)
    clients = asyncio.gather(*(client(box, rng, index, pause=400) for index in range(90)))
    while not clients.done():
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)
        model, phase = rng.choice(sorted(SHAPES)), rng.choice(list(Phase))
        if rng.random() < 0.3:
            box.scheduler.resize_member(spec(
                model, kv_guaranteed_bytes=rng.choice([0, 24 * 256]),
                decode_percent=rng.choice([10, 50, 100]), priority=rng.randrange(3),
            ))  # fmt: skip
        else:
            box.host(model, phase).die()
    await clients
    await box.idle()
    assert (box.scheduler.rounds.bugs, box.allocator.owned_units) == (0, 0)
    assert not box.scheduler.rounds.broken.is_set()
    await box.scheduler.close()


async def test_a_bug_in_a_round_is_not_lived_with() -> None:
    box = unit()
    await start(box)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    box.allocator.can_lease = None  # type: ignore[method-assign,assignment]
    stream = box.scheduler.submit(ask("r"))
    async with asyncio.timeout(5):
        await box.scheduler.rounds.broken.wait()
    await stream.aclose()
    await box.scheduler.close()


async def client(box: ToyScheduler, rng: random.Random, index: int, pause: int = 30) -> None:
    model = rng.choice(sorted(SHAPES))
    prompt = [rng.randrange(900) for _ in range(rng.randrange(1, 14))]
    count, stop_after = rng.randrange(1, 16), rng.choice([None, None, 0, 1, 4])
    for _ in range(rng.randrange(pause)):
        await asyncio.sleep(0)
    stream = box.scheduler.submit(ask(f"r{index}", model, prompt, count))
    tokens: list[int] = []
    async for output in stream:
        if stop_after is not None and len(tokens) >= stop_after:
            break
        tokens.extend(output.tokens)
    await stream.aclose()
    assert tokens == expected(prompt, len(tokens))
    if stop_after is None:
        assert len(tokens) == count


async def test_a_stream_closed_before_it_began_frees_its_place() -> None:
    box = unit()
    await start(box)
    stream = box.scheduler.submit(ask("r"))
    await stream.aclose()
    await box.idle()
    assert box.scheduler.members["a"].counters.cancelled == 1
    await box.scheduler.close()


async def test_cancelling_frees_the_rows_after_the_models_next_step() -> None:
    box = unit()
    await start(box)
    stream = box.scheduler.submit(ask("r", count=500))
    await anext(stream)
    assert box.allocator.owned_units > 0
    await stream.aclose()
    await box.idle()
    assert box.allocator.owned_units == 0
    await box.scheduler.close()


@pytest.mark.parametrize("phase", list(Phase))
async def test_a_host_that_dies_is_replaced_and_tokens_stay_the_same(phase: Phase) -> None:
    box = unit(SHAPES)
    await start(box)
    running = [asyncio.create_task(collect(box, ask(f"r{i}", "abc"[i % 3], [i, 5], 30)))
               for i in range(9)]  # fmt: skip
    slot = box.scheduler.members["b"].slots[phase]
    for kill in (1, 2):
        await asyncio.sleep(0.003)
        box.host("b", phase).die()
        await until(lambda: slot.restarts == kill and slot.host is not None)  # noqa: B023
    for i, task in enumerate(running):
        assert await task == expected([i, 5], 30)
    await box.idle()
    restarts = {m.model: [s.restarts for s in m.slots.values()]
                for m in box.scheduler.members.values()}  # fmt: skip
    assert sum(restarts["b"]) == 2
    assert sum(restarts["a"] + restarts["c"]) == 0
    await box.scheduler.close()


async def test_a_hung_step_counts_as_a_crash() -> None:
    box = unit(hang_floor_s=0.05, hang_factor=1.0)
    box.starter.gated.add(("a", Phase.DECODE))
    await start(box)
    box.starter.gated.clear()
    assert await collect(box, ask("r", count=6)) == expected((1, 2, 3), 6)
    assert box.scheduler.members["a"].decode.restarts == 1
    await box.idle()
    await box.scheduler.close()


@pytest.mark.parametrize("call", ["add", "abort"])
async def test_a_host_that_hangs_in_any_call_is_replaced(call: str) -> None:
    box = unit(hang_floor_s=0.05, hang_factor=1.0)
    await start(box)
    box.host("a", Phase.DECODE).stuck = call
    stream = box.scheduler.submit(ask("r", count=300))
    for _ in range(3):
        await anext(stream)
    await stream.aclose()
    await box.idle()
    slot = box.scheduler.members["a"].decode
    await until(lambda: slot.restarts == 1 and slot.host is not None)
    assert await collect(box, ask("s", count=4)) == expected((1, 2, 3), 4)
    await box.idle()
    await box.scheduler.close()


async def test_a_member_whose_host_never_stays_up_fails_and_the_others_serve() -> None:
    box = unit({"a": geometry(), "b": geometry()}, tries=2)
    box.starter.broken["b"] = lambda: PeerError("no memory today")
    for model in "ab":
        box.scheduler.add_member(spec(model))
    await box.serving("a")
    await until(lambda: box.scheduler.members["b"].state is MemberState.FAILED)
    member = box.scheduler.members["b"]
    assert (member.reason, member.permanent) == (Reason.ENGINE_CRASHED, False)
    assert "no memory today" in member.message
    with pytest.raises(ModelNotServing, match="EngineCrashed"):
        box.scheduler.submit(ask("r", "b"))
    assert await collect(box, ask("r", "a", count=3)) == expected((1, 2, 3), 3)
    await box.scheduler.close()


async def test_a_corrupt_checkpoint_fails_at_once_and_for_good() -> None:
    box = unit()
    box.starter.broken["a"] = corrupt
    box.scheduler.add_member(spec("a"))
    await until(lambda: box.scheduler.members["a"].state is MemberState.FAILED)
    member = box.scheduler.members["a"]
    assert (member.reason, member.permanent) == (Reason.CORRUPT_CHECKPOINT, True)
    await until(lambda: box.allocator.reserved_units == 0)
    await box.scheduler.close()


async def test_weights_that_do_not_fit_fail_with_the_figures() -> None:
    box = unit(units=16)
    box.starter.weight_bytes = 256 * 20
    box.scheduler.add_member(spec("a"))
    await until(lambda: box.scheduler.members["a"].state is MemberState.FAILED)
    assert box.scheduler.members["a"].reason is Reason.DOES_NOT_FIT
    assert "5.0 KiB" in box.scheduler.members["a"].message
    await box.scheduler.close()


async def test_a_poisonous_request_is_not_tried_for_ever() -> None:
    box = unit(max_crashes=2, tries=10)
    await start(box)
    task = asyncio.create_task(collect(box, ask("poison", count=400)))
    while not task.done():
        if box.host("a", Phase.DECODE).seqs:
            box.host("a", Phase.DECODE).die()
        await asyncio.sleep(0)
    with pytest.raises(PeerError, match="2 engine hosts"):
        await task
    await box.scheduler.close()


async def test_requests_that_cannot_all_grow_still_all_finish() -> None:
    shape = geometry(2, 1)
    box = unit({"a": shape}, units=shape.row_units * 12 + 1)
    await start(box)
    prompts = [[i] for i in range(8)]
    done = await asyncio.gather(*(collect(box, ask(f"r{i}", prompt=p, count=30))
                                  for i, p in enumerate(prompts)))  # fmt: skip
    assert done == [expected(p, 30) for p in prompts]
    assert box.scheduler.members["a"].counters.preempted > 0
    await box.idle()
    await box.scheduler.close()


async def test_who_runs_short_gets_idle_quota_at_once_not_at_the_next_regular_look() -> None:
    shape = geometry(2, 1)
    box = unit({"a": shape, "b": shape}, units=shape.row_units * 30 + 2, adapt_every_s=60.0)
    await start(box)
    await collect(box, ask("b0", "b", [1], 3))
    async with asyncio.timeout(5):
        assert await collect(box, ask("a0", "a", [2], 100)) == expected([2], 100)
    await box.scheduler.close()


async def test_a_request_that_finishes_while_it_is_preempted_blocks_no_later_preemption() -> None:
    box = unit()
    box.starter.gated.add(("a", Phase.DECODE))
    await start(box)
    member, host = box.scheduler.members["a"], box.host("a", Phase.DECODE)
    running = asyncio.create_task(collect(box, ask("r", count=2)))
    await until(lambda: bool(host.steps))
    box.scheduler.rounds.take_back(member, member.decode.residents["r"])
    assert member.is_giving_back
    assert host.gate is not None
    host.gate.set()
    assert await running == expected((1, 2, 3), 2)
    await box.idle()
    assert not member.is_giving_back
    await box.scheduler.close()


async def test_a_prompt_longer_than_the_budget_goes_over_several_steps() -> None:
    box = unit(units=2000, limits=Limits(prefill_tokens=16))
    await start(box)
    prompt = list(range(50))
    assert await collect(box, ask("r", prompt=prompt, count=3)) == expected(prompt, 3)
    assert len(box.host("a", Phase.PREFILL).steps) == 4
    assert all(g.token_budget <= 16 for g in box.host("a", Phase.PREFILL).steps)
    await box.idle()
    await box.scheduler.close()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(ask("r", prompt=()), "prompt is empty", id="empty"),
        pytest.param(ask("r", prompt=(5000,)), "0 to 996", id="token outside the vocabulary"),
        pytest.param(ask("r", count=5000), "context length of a is 4096", id="too long"),
        pytest.param(ask("r", count=900), "KV limit of a is", id="more KV than it may hold"),
    ],
)
async def test_what_can_never_be_served_is_refused(request_: object, message: str) -> None:
    box = unit()
    await start(box)
    with pytest.raises(RequestRefused, match=message):
        box.scheduler.submit(request_)  # type: ignore[arg-type]
    await box.scheduler.close()


async def test_a_full_queue_says_so() -> None:
    box = unit(max_queue=2)
    box.starter.gated.add(("a", Phase.PREFILL))
    await start(box)
    for i in range(2):
        box.scheduler.submit(ask(f"r{i}"))
    with pytest.raises(QueueFull, match="2 requests wait, at most 2"):
        box.scheduler.submit(ask("r2"))
    await box.scheduler.close()


async def test_a_member_comes_and_goes_while_another_serves() -> None:
    box = unit({"a": geometry(), "b": geometry(3, 2)}, units=200)
    box.scheduler.add_member(spec("a"))
    await box.serving("a")
    load = [asyncio.create_task(collect(box, ask(f"a{i}", "a", [i], 150))) for i in range(6)]
    box.scheduler.add_member(spec("b"))
    await box.serving("b")
    assert await collect(box, ask("b0", "b", [4], 20)) == expected([4], 20)
    assert await box.scheduler.remove_member("b", 5.0) == 0
    assert "b" in box.starter.forgotten
    for i, task in enumerate(load):
        assert await task == expected([i], 150)
    await box.idle()
    assert box.allocator.reserved_units == 1
    await box.scheduler.close()


async def test_draining_lets_running_requests_finish_and_refuses_new_ones() -> None:
    box = unit()
    await start(box)
    running = asyncio.create_task(collect(box, ask("r", count=100)))
    await asyncio.sleep(0)
    drain = asyncio.create_task(box.scheduler.drain_member("a", 5.0))
    await asyncio.sleep(0)
    with pytest.raises(ModelNotServing, match="Draining"):
        box.scheduler.submit(ask("s"))
    assert await running == expected((1, 2, 3), 100)
    assert await drain == 0
    await box.scheduler.close()


async def test_a_drain_that_takes_too_long_cuts_and_counts() -> None:
    box = unit()
    box.starter.gated.add(("a", Phase.DECODE))
    await start(box)
    stream = box.scheduler.submit(ask("r", count=100))
    await anext(stream)
    assert await box.scheduler.drain_member("a", 0.05) == 1
    with pytest.raises(PeerError, match="the request was cut"):
        await anext(stream)
    await box.scheduler.close()


async def test_lent_kv_comes_back_to_a_member_with_a_floor() -> None:
    shape = geometry(2, 1)
    box = unit({"a": shape, "b": shape}, units=shape.row_units * 40 + 2,
               limits=Limits(reclaim_rounds=4))  # fmt: skip
    box.scheduler.add_member(spec("a"))
    await box.serving("a")
    hogs = [asyncio.create_task(collect(box, ask(f"a{i}", "a", [i], 75))) for i in range(6)]
    await asyncio.sleep(0.01)
    box.scheduler.add_member(spec("b", kv_guaranteed_bytes=shape.row_units * 20 * 256))
    await box.serving("b")
    assert await collect(box, ask("b0", "b", [9], 70)) == expected([9], 70)
    for i, task in enumerate(hogs):
        assert await task == expected([i], 75)
    await box.idle()
    await box.scheduler.close()


async def until(holds: object) -> None:
    async with asyncio.timeout(5):
        while not holds():  # type: ignore[operator] # noqa: ASYNC110
            await asyncio.sleep(0.001)
