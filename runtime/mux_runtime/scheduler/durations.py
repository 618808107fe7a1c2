"""How long things took: histograms without names, and time by what ran together."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from mux_core.engine import Phase

_STEPS: Final = (1.0, 2.5, 5.0)
STEP_EDGES: Final = (*(base * 10.0**power for power in range(-3, 2) for base in _STEPS), 60.0)
"""0.001 to 60 s."""
DECISION_EDGES: Final = tuple(base * 10.0**power for power in range(-5, -1) for base in _STEPS)
"""A decision takes microseconds."""
PAIRS: Final = ("none", "single", "prefill_prefill", "prefill_decode", "decode_decode")


class Durations:
    """A histogram of seconds over fixed edges."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._edges, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper edge, written as prometheus_client does (`1.0`), and how many were at most that
        long."""
        running, out = 0, []
        names = (*(str(float(f"{edge:g}")) for edge in self._edges), "+Inf")
        for name, count in zip(names, self._counts, strict=True):
            running += count
            out.append((name, float(running)))
        return out


class Overlap:
    """Seconds by which phases had steps in flight at the same time."""

    def __init__(self, now: float) -> None:
        self.seconds = dict.fromkeys(PAIRS, 0.0)
        self._flying = dict.fromkeys(Phase, 0)
        self._since = now

    def begin(self, phase: Phase, now: float) -> None:
        self._book(now)
        self._flying[phase] += 1

    def end(self, phase: Phase, now: float) -> None:
        self._book(now)
        self._flying[phase] -= 1

    def until(self, now: float) -> Iterable[tuple[str, float]]:
        """Seconds of each kind, the present stretch included."""
        self._book(now)
        return self.seconds.items()

    def _book(self, now: float) -> None:
        self.seconds[self._kind()] += now - self._since
        self._since = now

    def _kind(self) -> str:
        prefills, decodes = self._flying[Phase.PREFILL], self._flying[Phase.DECODE]
        if prefills + decodes < 2:
            return "single" if prefills + decodes else "none"
        if prefills and decodes:
            return "prefill_decode"
        return "prefill_prefill" if prefills else "decode_decode"
