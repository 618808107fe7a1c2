"""The released loop, tick by tick, on hand-made loads."""

from dataclasses import replace
from typing import Any

import pytest

from adbs_builders import member
from mux_core.adbs import MemberLoad, PreemptWhy, UnitLoad
from mux_core.engine import Phase
from mux_core.errors import SpecError
from mux_core.simulator.policies import POLICIES, policy_factory
from mux_core.simulator.policy import Decision, Happening, Queue, UnitPolicy
from policy_toy import Tenant, setting_of

TICK = 1e-4
FREE = 100_000
TENANTS = (
    Tenant("a", "llama-7b", 2.0, 80, 30),
    Tenant("b", "llama-30b", 1.0, 100, 30),
)
PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
QUEUE = Queue(0.0, 1.0, 161, 337)


def a_policy(name: str = "adbs-released", **switches: bool) -> UnitPolicy:
    return policy_factory(name, switches)(setting_of(TENANTS))


def waits(model: str, percent: int, **changes: Any) -> MemberLoad:
    base = {"waiting": 1, "waiting_tokens": 10, "head_rows": 1, "batch_rows": 1}
    return member(model, **(base | {"prefill_percent": percent} | changes))


def decodes(model: str, **changes: Any) -> MemberLoad:
    return member(model, **({"decoding": 4, "running": 4} | changes))


def ask(policy: UnitPolicy, tick: int, *members: MemberLoad, free: int = FREE) -> Decision:
    load = UnitLoad(members=members, free_units=free)
    return policy.decide(load, [QUEUE] * len(members), tick * TICK)


def started(decision: Decision) -> list[tuple[str, Phase]]:
    return [(grant.model, grant.phase) for grant in decision.round.grants]


def busy(m: MemberLoad) -> MemberLoad:
    return replace(m, decode_idle=False)


def test_a_waiting_prefill_holds_decodes_back_for_one_tick_only():
    policy = a_policy()
    first = ask(policy, 1, decodes("a"), waits("b", 100, prefill_idle=False))
    assert started(first) == []
    assert first.again_at == pytest.approx(2 * TICK)
    second = ask(policy, 2, decodes("a"), waits("b", 100, prefill_idle=False))
    assert started(second) == [("a", DECODE)]


def test_with_the_bug_mended_decodes_stay_back_until_the_prefill_started():
    policy = a_policy("adbs-fixed")
    held = decodes("a"), waits("b", 100, prefill_idle=False)
    for tick in (1, 2, 3, 1000):
        decision = ask(policy, tick, *held)
        assert started(decision) == []
        assert decision.again_at is None
    assert started(ask(policy, 1001, decodes("a"), waits("b", 100))) == [("b", PREFILL)]


def test_while_a_prefill_executes_the_mended_loop_lets_decodes_run_beside_it():
    policy = a_policy("adbs-fixed")
    assert started(ask(policy, 1, waits("a", 60), decodes("b"))) == [
        ("a", PREFILL),
        ("b", DECODE),
    ]
    beside = waits("a", 60, prefill_idle=False), decodes("b")
    assert started(ask(policy, 9, *beside)) == [("b", DECODE)]
    # It has ended and the next one waits: decodes are held back again.
    ended = waits("a", 60, running=1), replace(decodes("b"), decode_idle=False)
    assert started(ask(policy, 20, *ended)) == [("a", PREFILL)]


@pytest.mark.parametrize("skipped", range(6))
def test_ticks_that_were_not_run_leave_what_running_them_would(skipped: int):
    held = decodes("a"), waits("b", 100, prefill_idle=False)
    off = busy(held[0]), held[1]
    sparse, dense = a_policy(), a_policy()
    for policy in (sparse, dense):
        ask(policy, 1, *off)
    for tick in range(2, 2 + skipped):
        ask(dense, tick, *off)
    assert started(ask(sparse, 2 + skipped, *held)) == started(ask(dense, 2 + skipped, *held))


def test_between_two_ticks_nothing_starts():
    policy = a_policy()
    load = UnitLoad(members=(decodes("a"), decodes("b")), free_units=FREE)
    decision = policy.decide(load, [QUEUE] * 2, 1.5 * TICK)
    assert started(decision) == []
    assert decision.again_at == pytest.approx(2 * TICK)
    assert decision.again_at is not None
    assert started(policy.decide(load, [QUEUE] * 2, decision.again_at)) == [
        ("a", DECODE),
        ("b", DECODE),
    ]


def test_prefills_are_launched_in_turn_after_the_last_one():
    policy = a_policy("adbs-fixed")
    both = waits("a", 100), waits("b", 100)
    assert started(ask(policy, 1, *both)) == [("a", PREFILL)]
    assert started(ask(policy, 2, *both)) == [("b", PREFILL)]
    assert started(ask(policy, 3, *both)) == [("a", PREFILL)]


def test_one_prefill_at_a_time_where_several_are_switched_off():
    both = waits("a", 50), waits("b", 50)
    assert len(started(ask(a_policy(), 1, *both))) == 2
    assert started(ask(a_policy(multi_prefill=False), 1, *both)) == [("a", PREFILL)]


def test_the_cap_on_sequences_bounds_who_prefills():
    full = waits("a", 50, running=10_000), waits("b", 50, running=17, waiting=30, batch_rows=60)
    decision = ask(a_policy(), 1, *full)
    assert started(decision) == [("b", PREFILL)]
    assert decision.round.grants[0].max_seqs < 30
    without = ask(a_policy(sequence_quota=False), 1, *full)
    assert without.round.grants[0].max_seqs == 30


def test_a_prefill_without_kv_waits_until_a_request_of_anybody_finishes():
    policy = a_policy()
    poor = waits("a", 50, batch_rows=5), decodes("b")
    assert started(ask(policy, 1, *poor, free=4)) == [("b", DECODE)]
    ended = replace(poor[1], decode_idle=False)
    assert started(ask(policy, 2, poor[0], ended, free=9)) == []
    policy.happened(Happening.FINISHED, "b", 3 * TICK)
    assert started(ask(policy, 3, poor[0], ended, free=9)) == [("a", PREFILL)]


def test_without_unblock_all_only_its_own_requests_free_it():
    policy = a_policy(unblock_all=False)
    poor = waits("a", 50, batch_rows=5), decodes("b")
    ask(policy, 1, *poor, free=4)
    policy.happened(Happening.FINISHED, "b", 2 * TICK)
    assert started(ask(policy, 2, poor[0], busy(poor[1]), free=9)) == []
    policy.happened(Happening.FINISHED, "a", 3 * TICK)
    assert started(ask(policy, 3, poor[0], busy(poor[1]), free=9)) == [("a", PREFILL)]


def test_a_decode_without_kv_preempts_its_own_newest():
    decision = ask(a_policy(), 2, decodes("a", decode_rows=3, row_units=10), decodes("b"), free=20)
    assert started(decision) == [("b", DECODE)]
    (preempt,) = decision.round.preempts
    assert (preempt.model, preempt.units, preempt.why) == ("a", 10, PreemptWhy.OWN_GROWTH)
    assert not decision.keeps_output
    assert (
        a_policy(restart_on_preempt=False)
        .decide(UnitLoad(members=(), free_units=0), [], 0.0)
        .keeps_output
    )


@pytest.mark.parametrize("name", ["adbs-released", "adbs-fixed", "fcfs", "roundrobin"])
def test_a_decode_step_that_preempted_goes_on_before_a_prefill_takes_what_it_freed(name: str):
    policy = a_policy(name)
    short = decodes("a", decode_rows=3, row_units=10)
    assert started(ask(policy, 2, short, free=20)) == []
    freed = replace(short, waiting=1, waiting_tokens=10, head_rows=3, batch_rows=3, running=3)
    assert started(ask(policy, 3, freed, free=40)) == [("a", DECODE)]


def test_first_come_first_served_stops_at_the_first_that_lacks_sms():
    policy = a_policy("fcfs")
    load = UnitLoad(members=(busy(waits("a", 80)), waits("b", 100)), free_units=FREE)
    younger_first = [Queue(2.0, 1, 161, 337), Queue(1.0, 1, 161, 337)]
    assert started(policy.decide(load, younger_first, 3.0)) == [("b", PREFILL)]
    policy = a_policy("fcfs")
    assert started(policy.decide(load, younger_first[::-1], 3.0)) == [("a", PREFILL)]


def test_round_robin_lets_decodes_pass_a_prefill_that_lacks_sms():
    policy = a_policy("roundrobin")
    decision = ask(policy, 0, decodes("a"), waits("b", 100, prefill_idle=False))
    assert started(decision) == [("a", DECODE)]
    assert decision.again_at is None


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_of_the_list_can_be_made(name: str):
    assert a_policy(name).name == name


def test_an_unknown_policy_or_switch_is_refused():
    with pytest.raises(SpecError, match="adbs-released"):
        policy_factory("adbs-better")
    with pytest.raises(SpecError, match="swapped_return"):
        policy_factory("adbs-released", {"swapped": True})
    with pytest.raises(SpecError, match="no switches"):
        policy_factory("fcfs", {"swapped_return": True})
