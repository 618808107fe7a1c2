"""The table of conditions and reasons, and how Ready reads it."""

import pytest

from mux_core.errors import InvariantError
from mux_core.reasons import (
    LLM_CONDITIONS,
    POOL_CONDITIONS,
    REASONS,
    ConditionType,
    Reason,
    condition,
    settled,
    with_ready,
)
from mux_core.status import Condition, Truth

C = ConditionType


def holding() -> list[Condition]:
    """Every LLM condition as it is when a model serves on a CPU without an SLO."""
    true = {C.MODEL_RESOLVED: Reason.RESOLVED, C.WEIGHTS_CACHED: Reason.CACHED,
            C.DEMAND_KNOWN: Reason.DECLARED, C.PLACED: Reason.SHARED,
            C.RUNTIME_READY: Reason.SERVING, C.ROUTE_READY: Reason.ROUTABLE}  # fmt: skip
    unknown = {C.SHARE_VERIFIED: Reason.NOT_APPLICABLE, C.SLO_MET: Reason.NO_SLO}
    return [
        condition(kind, Truth.TRUE, true[kind])
        if kind in true
        else condition(kind, Truth.UNKNOWN, unknown[kind])
        for kind in LLM_CONDITIONS
    ]


def test_every_condition_has_its_reasons_and_every_reason_its_place() -> None:
    assert set(REASONS) == {*LLM_CONDITIONS, *POOL_CONDITIONS}
    placed = {reason for kinds in REASONS.values() for some in kinds.values() for reason in some}
    assert set(Reason) - placed == {Reason.READY}


def test_a_reason_outside_the_table_is_refused() -> None:
    with pytest.raises(InvariantError, match="NoCapacity"):
        condition(C.ROUTE_READY, Truth.FALSE, Reason.NO_CAPACITY)
    with pytest.raises(InvariantError):
        condition(C.PLACED, Truth.TRUE, Reason.NO_CAPACITY)


def test_ready_does_not_wait_for_what_only_informs() -> None:
    ready, *others = with_ready(tuple(holding()))
    assert (ready.type, ready.status, ready.reason) == (C.READY, Truth.TRUE, Reason.READY)
    assert others == holding()


@pytest.mark.parametrize(
    ("broken", "wanted"),
    [
        ([condition(C.PLACED, Truth.FALSE, Reason.NO_CAPACITY, "why"),
          condition(C.ROUTE_READY, Truth.FALSE, Reason.NO_READY_UNIT)], Reason.NO_CAPACITY),
        ([condition(C.MODEL_RESOLVED, Truth.UNKNOWN, Reason.RESOLVING)], Reason.RESOLVING),
        ([condition(C.SHARE_VERIFIED, Truth.FALSE, Reason.SM_COUNT_MISMATCH)],
         Reason.SM_COUNT_MISMATCH),
    ],
)  # fmt: skip
def test_ready_copies_the_first_that_fails(broken: list[Condition], wanted: Reason) -> None:
    by_type = {c.type: c for c in holding()} | {c.type: c for c in broken}
    ready = with_ready(tuple(by_type[kind] for kind in LLM_CONDITIONS))[0]
    assert (ready.status, ready.reason) == (Truth.FALSE, wanted)


def test_a_condition_keeps_the_time_its_status_changed() -> None:
    first = settled(with_ready(tuple(holding())), (), generation=1, now=10.0)
    again = settled(with_ready(tuple(holding())), first, generation=2, now=20.0)
    assert {c.since for c in again} == {10.0}
    assert {c.observed_generation for c in again} == {2}
