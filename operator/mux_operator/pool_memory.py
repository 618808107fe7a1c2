"""What the loop remembers of one pool between two looks; a restart soon knows it again."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from mux_core.actions import Action
from mux_core.comparison import SeenState
from mux_core.planning import Choice
from mux_core.rates import RateState
from mux_core.snapshot import Subject
from mux_core.units import UnitId
from mux_operator.control import Links

REJECTED_S: Final = 60.0
"""An action that the cluster refused for good is tried again so much later, or when it differs."""
LIVED_LONG_S: Final = 600.0
"""A unit that ran this long starts again without a pause."""


@dataclass(slots=True)
class Restarts:
    """When a unit that dies may start again: 0, 1, 2, 4 ... seconds later."""

    deaths: int = 0
    started_at: float = 0.0
    not_before: float = 0.0

    def died(self, now: float, longest: float) -> None:
        if now - self.started_at > LIVED_LONG_S:
            self.deaths = 0
        pause = min(longest, 2.0 ** (self.deaths - 1)) if self.deaths else 0.0
        self.deaths += 1
        self.not_before = now + pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An action that the cluster refused for good at `at`, and why."""

    action: Action
    message: str
    at: float

    def holds_up(self, action: Action, now: float) -> bool:
        return action == self.action and now - self.at < REJECTED_S


@dataclass(slots=True)
class PoolMemory:
    """What one pool's cycles hand on to the next; `searching` is the hash of what is searched."""

    links: Links
    demand: RateState = field(default_factory=RateState)
    got: SeenState = field(default_factory=SeenState)
    planned: tuple[str, Choice] | None = None
    planned_at: float = 0.0
    search: asyncio.Task[Choice] | None = None
    searching: str = ""
    refused: dict[UnitId, tuple[int, str]] = field(default_factory=dict)
    restarts: dict[UnitId, Restarts] = field(default_factory=dict)
    rejected: dict[Subject, Rejected] = field(default_factory=dict)

    async def end(self) -> None:
        """Stops the search under way and every watch."""
        if self.search is not None:
            self.search.cancel()
            await asyncio.wait({self.search})
        await self.links.close()
