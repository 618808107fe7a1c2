"""One round at a time: what is granted, what is held, and why."""

import pytest

from adbs_builders import decide, decoding, granted, held, member, waiting
from mux_core.adbs import Limits, PreemptWhy, Turn
from mux_core.engine import Phase

P, D = Phase.PREFILL, Phase.DECODE


def test_nothing_to_do_grants_nothing() -> None:
    outcome = decide(member("a"), member("b"))
    assert (outcome.grants, outcome.held, outcome.preempts) == ((), (), ())


def test_prefill_goes_before_decode() -> None:
    outcome = decide(decoding("a"), waiting("b"))
    assert granted(outcome) == [("b", P), ("a", D)]


def test_decodes_of_others_fill_the_rest() -> None:
    outcome = decide(waiting("a"), decoding("b"), decoding("c"))
    assert granted(outcome) == [("a", P), ("b", D)]
    assert held(outcome) == {("c", D): "NoSms"}


def test_a_ready_prefill_without_sms_reserves_them() -> None:
    outcome = decide(waiting("a"), decoding("b"), sm_in_use=50)
    assert granted(outcome) == []
    assert held(outcome) == {("a", P): "NoSms", ("b", D): "ReservedForPrefill"}


def test_a_smaller_prefill_does_not_pass_a_reserving_one() -> None:
    outcome = decide(waiting("a", prefill_percent=100), waiting("b"), sm_in_use=30)
    assert held(outcome) == {("a", P): "NoSms", ("b", P): "ReservedForPrefill"}


def test_a_prefill_without_rows_reserves_nothing() -> None:
    outcome = decide(waiting("a", head_rows=5, batch_rows=5), decoding("b"), free=4)
    assert granted(outcome) == [("b", D)]
    assert held(outcome) == {("a", P): "NoKv"}


def test_a_busy_host_is_said_to_be_busy() -> None:
    outcome = decide(waiting("a", prefill_idle=False), decoding("b", decode_idle=False))
    assert held(outcome) == {("a", P): "HostBusy", ("b", D): "HostBusy"}


def test_round_robin_goes_on_after_the_last_granted() -> None:
    big = {"prefill_percent": 100}
    first = decide(waiting("a", **big), waiting("b", **big))
    assert granted(first) == [("a", P)]
    second = decide(waiting("a", **big), waiting("b", **big), turn=first.turn)
    assert granted(second) == [("b", P)]


def test_a_higher_priority_goes_first_in_its_cycle_only() -> None:
    big = {"prefill_percent": 100}
    first = decide(waiting("a", **big), waiting("b", priority=1, **big))
    assert granted(first) == [("b", P)]
    second = decide(waiting("a", **big), waiting("b", priority=1, **big), turn=first.turn)
    assert granted(second) == [("a", P)]


def test_prefills_that_passed_a_decode_often_enough_owe_it_a_turn() -> None:
    turn, limits = Turn(), Limits(prefill_turns=2)
    seen = []
    for _ in range(4):
        outcome = decide(waiting("a", prefill_percent=100), decoding("b"), turn=turn, limits=limits)
        turn = outcome.turn
        seen.append(granted(outcome))
    assert seen == [[("a", P)], [("a", P)], [("b", D)], [("a", P)]]


def test_an_owed_decode_reserves_against_prefill() -> None:
    outcome = decide(waiting("a"), decoding("b"), sm_in_use=90, turn=Turn(owed=frozenset("b")))
    assert granted(outcome) == []
    assert outcome.turn.owed == frozenset("b")
    after = decide(waiting("a"), decoding("b"), turn=outcome.turn)
    assert granted(after) == [("b", D), ("a", P)]
    assert after.turn.owed == frozenset()


@pytest.mark.parametrize(
    ("used", "quota", "free", "rows"),
    [
        pytest.param(0, 10, 100, 3, id="plenty"),
        pytest.param(8, 10, 100, 2, id="quota leaves two"),
        pytest.param(0, 10, 1, 1, id="pool leaves one"),
    ],
)
def test_rows_of_a_decode_step(used: int, quota: int, free: int, rows: int) -> None:
    load = decoding("a", decoding=9, running=9, decode_rows=3, used=used, quota=quota)
    (grant,) = decide(load, free=free).grants
    assert (grant.rows, grant.token_budget, grant.max_seqs) == (rows, 9, 9)


def test_a_borrower_leaves_what_others_lack_to_their_floor() -> None:
    borrower = waiting("a", head_rows=6, batch_rows=6, quota=100)
    outcome = decide(borrower, member("b", floor=5, quota=5), free=10)
    assert held(outcome) == {("a", P): "NoKv"}
    assert granted(decide(borrower, member("b", floor=5, quota=5, used=1), free=10)) == [("a", P)]


def test_inside_its_floor_a_member_takes_any_free_unit() -> None:
    owner = waiting("a", head_rows=6, batch_rows=6, floor=6, quota=6)
    outcome = decide(owner, member("b", floor=50, quota=50), free=6)
    assert granted(outcome) == [("a", P)]


def test_two_grants_of_a_round_do_not_share_units() -> None:
    outcome = decide(
        waiting("a", head_rows=4, batch_rows=4, prefill_percent=30),
        waiting("b", head_rows=4, batch_rows=4, prefill_percent=30), free=6,
    )  # fmt: skip
    assert granted(outcome) == [("a", P)]
    assert held(outcome) == {("b", P): "NoKv"}


def test_admission_leaves_room_for_running_requests_to_grow() -> None:
    load = waiting("a", head_rows=2, decoding=8, running=8, decode_rows=3, decode_idle=False)
    assert held(decide(load, free=7))[("a", P)] == "NoKv"
    assert granted(decide(load, free=8)) == [("a", P)]


def test_a_member_none_of_whose_requests_can_grow_preempts_its_own_youngest() -> None:
    stuck = decoding("a", decoding=2, running=2, decode_rows=2, used=10, quota=10)
    (preempt,) = decide(stuck, free=50).preempts
    assert (preempt.model, preempt.why) == ("a", PreemptWhy.OWN_GROWTH)


def test_a_lone_stuck_request_is_not_preempted_for_itself() -> None:
    stuck = decoding("a", decode_rows=1, used=10, quota=10)
    outcome = decide(stuck, free=50)
    assert outcome.preempts == ()
    assert held(outcome) == {("a", D): "QuotaReached"}


def test_a_borrower_beyond_its_quota_gives_back_after_the_bound() -> None:
    limits, turn = Limits(reclaim_rounds=3), Turn()
    owner = waiting("a", head_rows=4, batch_rows=4, floor=8, quota=8)
    borrower = decoding("b", decoding=3, running=3, decode_rows=1, used=20, quota=12)
    seen = []
    for _ in range(5):
        outcome = decide(owner, borrower, free=0, turn=turn, limits=limits)
        turn = outcome.turn
        seen.append([(p.model, p.units, p.why) for p in outcome.preempts])
    assert seen == [[], [], [], [("b", 4, PreemptWhy.QUOTA_RECLAIMED)], []]


def test_when_nothing_moves_for_free_units_in_pieces_another_gives_way() -> None:
    limits, turn = Limits(reclaim_rounds=1), Turn()
    one = decoding("a", decode_rows=1, row_units=8, used=8, floor=40, quota=40, leasable=0)
    other = decoding("b", decode_rows=1, row_units=4, used=12, floor=40, quota=40, leasable=0)
    seen = []
    for _ in range(3):
        outcome = decide(one, other, free=20, turn=turn, limits=limits)
        turn = outcome.turn
        seen.append([(p.model, p.units, p.why) for p in outcome.preempts])
    assert seen == [[], [("b", 8, PreemptWhy.ALL_STUCK)], []]
    moving = decide(one, other, free=20, turn=Turn(starved={"a": 9, "b": 9}), limits=limits,
                    sm_in_use=30)  # fmt: skip
    assert moving.preempts == ()


def test_a_borrower_beyond_its_quota_gets_no_lease() -> None:
    borrower = decoding("b", decoding=3, running=3, decode_rows=2, used=20, quota=12)
    (grant,) = decide(borrower, free=100).grants
    assert grant.rows == 0


def test_seats_bound_the_requests_of_a_member() -> None:
    outcome = decide(waiting("a", running=7), limits=Limits(max_seqs=7))
    assert held(outcome) == {("a", P): "NoSeat"}


def test_a_bound_on_prefills_lets_decodes_go_on() -> None:
    limits = Limits(sm_percent=200, max_prefills=1)
    outcome = decide(waiting("a"), waiting("b"), decoding("c"), limits=limits)
    assert granted(outcome) == [("a", P), ("c", D)]
    assert held(outcome) == {("b", P): "PrefillRuns"}


def test_a_prefill_waits_while_another_is_in_flight() -> None:
    limits = Limits(sm_percent=200, max_prefills=1)
    outcome = decide(member("a", prefill_idle=False), waiting("b"), decoding("c"),
                     limits=limits, sm_in_use=60, prefills=1)  # fmt: skip
    assert granted(outcome) == [("c", D)]
    assert held(outcome) == {("b", P): "PrefillRuns"}
