"""What one process counted of one model since it started: what `control.proto` calls Counters.

Latencies are counted by edges a fifth apart, so that a percentile read from the counts is known to
a few percent, whatever its size.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

EDGES_S: Final = tuple(0.001 * 1.2**step for step in range(70))
"""1 ms to five minutes. A bucket holds what is at most its edge; the last one all the rest."""
BUCKETS: Final = len(EDGES_S) + 1


def bucket(seconds: float) -> int:
    """Where a latency is counted."""
    return bisect_left(EDGES_S, seconds)


def quantile(counts: Sequence[float], part: float) -> float | None:
    """The latency that this part of the counted ones stays below; None where none was counted.

    Within its bucket by even spacing on a logarithmic scale.
    """
    wanted = part * sum(counts)
    below = 0.0
    for index, count in enumerate(counts):
        if count > 0 and below + count >= wanted:
            low = EDGES_S[max(0, index - 1)]
            high = EDGES_S[min(index, len(EDGES_S) - 1)]
            return float(low * (high / low) ** ((wanted - below) / count))
        below += count
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Of `count` requests, their `seconds` together; `by_bucket` is empty where unknown."""

    count: int = 0
    seconds: float = 0.0
    by_bucket: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counters of one model in one process, and the KV it holds now (None: it holds none).

    `judged` and `met`: requests held against the model's SLO, and within it.
    """

    finished: int = 0
    ttft: Latencies = field(default_factory=Latencies)
    tpot: Latencies = field(default_factory=Latencies)
    judged: int = 0
    met: int = 0
    kv_used_bytes: int | None = None
