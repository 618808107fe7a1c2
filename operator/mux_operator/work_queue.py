"""Which pool to look at next: keys, each at most once, not before their time.

A mark says that something may have changed; many marks in a moment make one look. A key that is
being worked on can be marked again and is then looked at once more. After a failure the key rests:
marks wait until its pause is over.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mux_core.specs import PoolKey


@dataclass(slots=True)
class WorkQueue:
    """Used from one event loop; `clock` is monotonic."""

    clock: Callable[[], float]
    debounce_s: float = 0.2
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    jitter: Callable[[], float] = random.random
    _due: dict[PoolKey, float] = field(default_factory=dict)
    _working: set[PoolKey] = field(default_factory=set)
    _failures: dict[PoolKey, int] = field(default_factory=dict)
    _rest_until: dict[PoolKey, float] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def mark(self, key: PoolKey, *, after_s: float | None = None) -> None:
        """The key is due after the debounce, or after `after_s`; an earlier due time stays."""
        due = self.clock() + (self.debounce_s if after_s is None else after_s)
        due = max(due, self._rest_until.get(key, 0.0))
        self._due[key] = min(due, self._due.get(key, due))
        self._changed.set()

    async def take(self) -> PoolKey:
        """The key that has been due longest; waits for one. Follow with `done` or `failed`."""
        while True:
            self._changed.clear()
            key = min((k for k in self._due if k not in self._working),
                      key=lambda k: (self._due[k], k), default=None)  # fmt: skip
            if key is not None and self._due[key] <= self.clock():
                del self._due[key]
                self._working.add(key)
                return key
            await self._wait(None if key is None else self._due[key] - self.clock())

    def done(self, key: PoolKey) -> None:
        self._working.discard(key)
        self._failures.pop(key, None)
        self._rest_until.pop(key, None)
        self._changed.set()

    def failed(self, key: PoolKey) -> float:
        """The key rests, longer after each failure in a row; answers for how many seconds."""
        self._working.discard(key)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        doubled = self.first_pause_s * 2.0 ** (failures - 1)
        pause = min(self.longest_pause_s, doubled) * (0.5 + self.jitter())
        self._rest_until[key] = self.clock() + pause
        self._due.pop(key, None)
        self.mark(key, after_s=pause)
        return pause

    @property
    def depth(self) -> int:
        """Keys that are due now."""
        now = self.clock()
        return sum(1 for due in self._due.values() if due <= now)

    @property
    def oldest_s(self) -> float:
        """For how long the longest waiting key has been due."""
        now = self.clock()
        return max((now - due for due in self._due.values() if due <= now), default=0.0)

    async def _wait(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
