"""The election over a Lease kept in memory; time is a number."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from mux_core.errors import PeerError
from mux_operator.lease import Election, LeaseLost


@dataclass(slots=True)
class Shelf:
    """One Lease; `away` is an API server that does not answer."""

    lease: dict[str, Any] | None = None
    away: bool = False

    async def read(self) -> dict[str, Any] | None:
        self._answer()
        return None if self.lease is None else {**self.lease, "spec": dict(self.lease["spec"])}

    async def create(self, lease: dict[str, Any]) -> dict[str, Any]:
        return await self.replace(lease)

    async def replace(self, lease: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        self.lease = lease
        return lease

    def _answer(self) -> None:
        if self.away:
            raise PeerError("no answer")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def candidate(shelf: Shelf, clock: Clock, name: str) -> Election:
    return Election(shelf, "lease", "ns", name, clock=clock)


async def step(election: Election) -> None:
    """One attempt."""
    running = asyncio.create_task(election.run())
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_the_first_leads_and_the_second_waits() -> None:
    shelf, clock = Shelf(), Clock()
    one, two = candidate(shelf, clock, "one"), candidate(shelf, clock, "two")
    await step(one)
    await step(two)
    assert (one.leads.is_set(), two.leads.is_set()) == (True, False)


async def test_an_unrenewed_lease_is_taken_after_its_duration() -> None:
    shelf, clock = Shelf(), Clock()
    one, two = candidate(shelf, clock, "one"), candidate(shelf, clock, "two")
    await step(one)
    await step(two)
    clock.now = 14.0
    await step(two)
    assert not two.leads.is_set()
    clock.now = 16.0
    await step(two)
    assert two.leads.is_set()
    with pytest.raises(LeaseLost, match="one ends"):
        await one.run()


async def test_an_api_server_that_is_away_pauses_the_leader_and_ends_nothing() -> None:
    shelf, clock = Shelf(), Clock()
    one = candidate(shelf, clock, "one")
    await step(one)
    shelf.away = True
    clock.now = 5.0
    await step(one)
    assert one.leads.is_set()
    clock.now = 11.0
    await step(one)
    assert not one.leads.is_set()
    shelf.away = False
    clock.now = 40.0
    await step(one)
    assert one.leads.is_set()


async def test_a_released_lease_is_free_at_once() -> None:
    shelf, clock = Shelf(), Clock()
    one, two = candidate(shelf, clock, "one"), candidate(shelf, clock, "two")
    await step(one)
    await one.release()
    await step(two)
    assert two.leads.is_set()
