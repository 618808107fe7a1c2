"""How long things took, as a histogram that knows no names."""

from bisect import bisect_left
from typing import Final


class Durations:
    """A histogram without names: 0.0001 to 60 s in 1-2.5-5 steps."""

    EDGES: Final = tuple(base * 10.0**power for power in range(-5, 2) for base in (1, 2.5, 5))

    def __init__(self) -> None:
        self.counts = [0] * (len(self.EDGES) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.EDGES, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        running, out = 0, []
        for edge, count in zip((*map(repr, self.EDGES), "+Inf"), self.counts, strict=True):
            running += count
            out.append((edge, float(running)))
        return out
