import pytest

from mux_core.engine import Grant, KVGeometry, KVHandoff, Phase, Row, StepResult, kv_geometry
from mux_core.errors import InvariantError
from mux_core.ledger import RowLedger

GEOMETRY: KVGeometry = kv_geometry(
    layers=2, kv_heads=1, head_dim=64, dtype="bfloat16", unit_bytes=16384
)
P, D = ("chat/prefill", 1), ("chat/decode", 2)
A, B, C = (0, 128), (2, 130), (4, 132)


@pytest.fixture
def ledger() -> RowLedger:
    ledger = RowLedger()
    ledger.open(P, GEOMETRY)
    ledger.open(D, GEOMETRY)
    return ledger


def grant(step: int, *lease: Row) -> Grant:
    return Grant(step=step, phases=frozenset(Phase), token_budget=8, max_seqs=8, lease=lease)


def handoff(*rows: Row, shared: int = 0) -> KVHandoff:
    return KVHandoff(geometry=GEOMETRY, rows=rows, num_tokens=1, shared_rows=shared)


def test_unused_rows_of_a_lease_come_back(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, A, B, C))
    assert ledger.settle(P, StepResult(step=1, used=1)) == (B, C)
    assert ledger.owned(P) == 1
    ledger.audit(owned_units=GEOMETRY.row_units)


def test_freed_rows_come_back_even_when_used_in_the_same_step(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, A, B))
    assert ledger.settle(P, StepResult(step=1, used=2, freed=(A,))) == (A,)
    assert ledger.owned(P) == 1


def test_rows_pass_from_prefill_to_decode(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, A, B))
    kv = handoff(A, B)
    assert ledger.settle(P, StepResult(step=1, used=2, handoffs={"r": kv})) == ()
    ledger.audit(owned_units=2 * GEOMETRY.row_units)
    ledger.adopt(D, kv)
    assert (ledger.owned(P), ledger.owned(D)) == (0, 2)
    ledger.lease(D, grant(2))
    assert ledger.settle(D, StepResult(step=2, freed=(A, B))) == (A, B)
    ledger.audit(owned_units=0)


def test_a_handoff_that_nobody_adopts_is_given_back_once(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, A))
    kv = handoff(A)
    ledger.settle(P, StepResult(step=1, used=1, handoffs={"r": kv}))
    assert ledger.abandon(kv) == (A,)
    with pytest.raises(InvariantError, match="not in transit"):
        ledger.abandon(kv)


def test_an_aborted_request_leaves_with_its_rows(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, A))
    ledger.settle(P, StepResult(step=1, used=1))
    ledger.withdraw(P, handoff(A))
    assert ledger.owned(P) == 0
    assert ledger.abandon(handoff(A)) == (A,)


def test_shared_rows_stay_with_whoever_caches_them(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, B))
    kv = handoff(A, B, shared=1)
    ledger.settle(P, StepResult(step=1, used=1, handoffs={"r": kv}))
    ledger.adopt(D, kv)
    assert ledger.owned(D) == 1
    ledger.lease(D, grant(2))
    with pytest.raises(InvariantError, match=r"chat/decode#2 lets go of row \[0, ...\] in step 2"):
        ledger.settle(D, StepResult(step=2, freed=(A,)))


def test_a_dead_host_leaves_its_rows_and_its_lease(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, A))
    ledger.settle(P, StepResult(step=1, used=1))
    ledger.lease(P, grant(2, B, C))
    assert ledger.close(P) == (A, B, C)
    ledger.audit(owned_units=0)
    with pytest.raises(InvariantError, match="chat/prefill#1 has no account"):
        ledger.settle(P, StepResult(step=2))


@pytest.mark.parametrize(
    ("result", "wrong"),
    [
        pytest.param(StepResult(step=1, used=3), "used 3 rows of a lease of 2", id="over-lease"),
        pytest.param(StepResult(step=1, used=-1), "used -1 rows", id="negative"),
        pytest.param(StepResult(step=2), "answers step 2, granted is 1", id="other-step"),
        pytest.param(StepResult(step=1, used=1, freed=(B,)), "does not own it", id="unused-freed"),
        pytest.param(StepResult(step=1, used=1, freed=(A, A)), "twice", id="freed-twice"),
        pytest.param(
            StepResult(step=1, used=1, freed=(A,), handoffs={"r": handoff(A)}),
            "twice", id="freed-and-handed-off",
        ),
        pytest.param(
            StepResult(step=1, used=1, freed=((0, 999),)), "does not own it", id="altered-row"
        ),
    ],
)  # fmt: skip
def test_a_result_that_breaks_a_rule_changes_nothing(
    ledger: RowLedger, result: StepResult, wrong: str
) -> None:
    ledger.lease(P, grant(1, A, B))
    with pytest.raises(InvariantError, match=wrong):
        ledger.settle(P, result)
    assert ledger.owned(P) == 0
    assert ledger.settle(P, StepResult(step=1, used=2)) == ()


def test_a_second_answer_to_one_step_is_refused(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, A))
    ledger.settle(P, StepResult(step=1))
    with pytest.raises(InvariantError, match="granted is none"):
        ledger.settle(P, StepResult(step=1))


def test_a_second_grant_while_a_step_runs_is_refused(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1))
    with pytest.raises(InvariantError, match="granted step 2 while step 1 runs"):
        ledger.lease(P, grant(2))


def test_a_row_leased_twice_is_refused(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, A))
    ledger.settle(P, StepResult(step=1, used=1))
    with pytest.raises(InvariantError, match="is leased a row it owns"):
        ledger.lease(P, grant(2, A))
    with pytest.raises(InvariantError, match="twice"):
        ledger.lease(P, grant(2, B, B))


def test_the_audit_sees_rows_that_two_hosts_own(ledger: RowLedger) -> None:
    ledger.lease(P, grant(1, A))
    ledger.lease(D, grant(2, A))
    with pytest.raises(InvariantError, match="and so does another"):
        ledger.audit(owned_units=2 * GEOMETRY.row_units)


def test_the_audit_sees_a_leak(ledger: RowLedger) -> None:
    with pytest.raises(InvariantError, match="0 units in accounts and in transit, the pool"):
        ledger.audit(owned_units=4)
