"""Every (state, event) pair is in the table or refused; every state has a way out or is an end."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest

from mux_core.errors import InvariantError
from mux_core.lifecycle import (
    HOST,
    MEMBER,
    REQUEST,
    HostEvent,
    HostState,
    MemberEvent,
    MemberState,
    RequestEvent,
    RequestState,
    advance,
)

TABLES = {
    "host": (HOST, HostState, HostEvent, {HostState.STOPPED}),
    "member": (MEMBER, MemberState, MemberEvent, {MemberState.STOPPED}),
    "request": (
        REQUEST, RequestState, RequestEvent,
        {RequestState.FINISHED, RequestState.FAILED, RequestState.CANCELLED},
    ),
}  # fmt: skip


@pytest.mark.parametrize("role", TABLES)
def test_every_pair_is_a_step_or_refused_by_name(role: str) -> None:
    table: Mapping[Any, StrEnum]
    table, states, events, _ = TABLES[role]  # type: ignore[assignment]
    for state in states:
        for event in events:
            if (state, event) in table:
                assert advance(table, state, event, role=role) is table[state, event]
                continue
            with pytest.raises(InvariantError) as refused:
                advance(table, state, event, role=role)
            assert role in str(refused.value)
            assert repr(event.value) in str(refused.value)
            assert state in str(refused.value)


@pytest.mark.parametrize("role", TABLES)
def test_only_ends_have_no_way_out_and_all_states_are_reached(role: str) -> None:
    table, states, _, ends = TABLES[role]
    assert set(states) - {state for state, _ in table} == ends
    first = next(iter(states))
    assert set(states) - set(table.values()) <= {first}


@pytest.mark.parametrize("role", TABLES)
def test_every_event_happens_somewhere(role: str) -> None:
    table, _, events, _ = TABLES[role]
    assert {event for _, event in table} == set(events)
