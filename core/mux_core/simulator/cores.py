"""The cores of a CPU node on the virtual clock: all that runs at once shares them equally.

A step on a CPU is a chain: its engine host computes, processes wake, then the scheduler's takes
the result and grants anew, while the client reads. Hosts run side by side; scheduler and client are
a process each, which does one thing after another. What wants to run at once shares the cores
equally, as an operating system has it over a few steps. It leaves some of their time unused all the
same (`UnitCost.cores_used`): what waits for one core waits on while another has nothing to do.
"""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf

from mux_core.costmodel.profile_set import CpuWork, threads_of

Then = Callable[[float], None]
"""What follows, told the time."""
_ROUNDING_S = 1e-9


class Cores:
    """Tasks that share `usable` cores. `due`: when the first of them ends if none comes before.

    `ask_at` is asked to call `settle` at that moment; a moment that is not due any more is void.
    """

    def __init__(self, usable: float, ask_at: Callable[[float, "Cores"], None]) -> None:
        self.due = inf
        self._usable = usable
        self._ask_at = ask_at
        self._tasks: list[tuple[float, int, int, Then]] = []
        self._numbers = count()
        self._wanted = 0
        # Seconds that a task there since the beginning would have run, and when that was so.
        self._had = self._looked_at = 0.0

    def run(self, now: float, seconds: float, then: Then, *, threads: int = 1) -> None:
        """A task of so many seconds, were it alone; one without threads wants no core, but lasts
        longer as well where these are wanted."""
        self._pass(now)
        self._wanted += threads
        heappush(self._tasks, (self._had + seconds, next(self._numbers), threads, then))
        self._look_ahead(now)

    def settle(self, now: float) -> None:
        """Ends what is due."""
        self._pass(now)
        while self._tasks and self._tasks[0][0] <= self._had + _ROUNDING_S:
            _, _, threads, then = heappop(self._tasks)
            self._wanted -= threads
            then(now)
        self._look_ahead(now)

    @property
    def _speed(self) -> float:
        return min(1.0, self._usable / max(1, self._wanted))

    def _pass(self, now: float) -> None:
        if self._tasks:
            self._had += (now - self._looked_at) * self._speed
        self._looked_at = now

    def _look_ahead(self, now: float) -> None:
        due = inf
        if self._tasks:
            due = now + max(0.0, self._tasks[0][0] - self._had) / self._speed
        if due != self.due:
            self.due = due
            if due < inf:
                self._ask_at(due, self)


class _Process:
    """One process on the cores: one thing after another, in the order they came."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._left: deque[tuple[float, Then]] = deque()

    def run(self, now: float, seconds: float, then: Then) -> None:
        self._left.append((seconds, then))
        if len(self._left) == 1:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._cores.run(now, self._left[0][0], self._done)

    def _done(self, now: float) -> None:
        _, then = self._left.popleft()
        if self._left:
            self._begin(now)
        then(now)


class CpuNode:
    """Runs the steps of one node's units, and what goes with them."""

    def __init__(self, work: CpuWork, ask_at: Callable[[float, Cores], None]) -> None:
        self._work = work
        self._cores = Cores(work.usable, ask_at)
        self._scheduler = _Process(self._cores)
        self._client = _Process(self._cores)

    def threads(self, percent: int) -> int:
        """Threads of a host of that share."""
        return threads_of(percent, self._work.cores)

    def settle(self, now: float) -> None:
        """Ends what is due."""
        self._cores.settle(now)

    def arrive(self, now: float, then: Then) -> None:
        """A request on its way into its queue."""
        unit = self._work.unit
        asked, taken = unit.client.request_s, unit.scheduler.request_s
        rest = max(0.0, unit.arrival_s - asked - taken)
        self._client.run(now, asked, lambda at: self._scheduler.run(
            at, taken, lambda at: self._cores.run(at, rest, then)))  # fmt: skip

    def step(
        self, now: float, seconds: float, tokens: int, then: Then, *, threads: int
    ) -> None:  # fmt: skip
        """A step that takes so long on an idle node, the scheduler's part included."""
        unit = self._work.unit
        idle = min(seconds, unit.idle_s(tokens))
        between = min(seconds - idle, unit.scheduler.of_step(tokens))

        def computed(at: float) -> None:
            self._cores.run(at, idle, woken, threads=0)

        def woken(at: float) -> None:
            self._scheduler.run(at, between, answered)

        def answered(at: float) -> None:
            self._client.run(at, unit.client.of_step(tokens), _read)
            then(at)

        self._cores.run(now, seconds - idle - between, computed, threads=threads)


def _read(now: float) -> None:
    """The client has read what came; nothing waits for that."""
