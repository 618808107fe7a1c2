"""How long a request waits before its prefill: for the unit's other prefills, and for KV.

Prefills queue one after the other (M/G/1). KV is what requests hold while they run, a sum that
varies by their number and by their lengths; where it passes what there is, newcomers wait until
others end. That is a queue of many servers, each as large as what a typical request holds
(Hayward's equivalent group), near capacity (Halfin and Whitt, Operations Research 29(3), 1981).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, exp, inf, log, pi, sqrt

AT_A_MOMENT = 0.93
"""What a running request holds on average, in parts of its prompt and mean output: 464 of 498
tokens at the simulator's ShareGPT-like lengths."""
SPREAD = 0.56
"""Variance of what running requests hold over its mean squared, at these lengths."""
SELDOM = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """`chance`: part of the requests that wait at all. `mean`: seconds, over all requests."""

    chance: float
    mean: float

    @property
    def p99(self) -> float:
        """99th percentile in seconds; the wait of who waits is exponential."""
        if self.chance <= SELDOM or self.mean <= 0:
            return 0.0
        return self.mean / self.chance * log(self.chance / SELDOM)

    def within(self, seconds: float) -> float:
        """Part of the requests that wait at most so long."""
        if self.mean <= 0:
            return 1.0
        return 1 - self.chance * exp(-seconds * self.chance / self.mean)


NEVER = Queue(chance=0.0, mean=0.0)
FOR_EVER = Queue(chance=1.0, mean=inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Requests of one member: per second, seconds of a prefill of one, how bursty they arrive."""

    rate: float
    prefill_s: float
    burstiness: float


def for_prefills(streams: Sequence[Stream], busy: float) -> Queue:
    """Wait behind the unit's prefills: Allen-Cunneen's M/G/1.

    `busy`: part of the time they run when those that wait are batched; what waits is served at
    that pace, while who arrives to no queue finds, and makes, prefills of one prompt.
    """
    rate = sum(stream.rate for stream in streams)
    single = sum(stream.rate * stream.prefill_s for stream in streams)
    if rate <= 0 or single <= 0:
        return NEVER
    if busy >= 1:
        return FOR_EVER
    mean = single / rate
    square = sum(s.rate * s.prefill_s**2 for s in streams) / rate
    burst = sum(s.rate * s.burstiness for s in streams) / rate
    # Prompt lengths vary about as much as their mean (ShareGPT), hence one more mean squared.
    variation = (square + mean * mean) / (mean * mean)
    chance = max(busy, 1 - exp(-single))
    return Queue(chance=chance, mean=chance * mean / (1 - busy) * (burst + variation - 1) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one member's running requests hold: their number, bytes of each, seconds it is held.

    `swing`: variance of their number over its mean; 1 where nobody stays longer for the others.
    """

    requests: float
    bytes: float
    seconds: float
    swing: float = 1.0

    @property
    def variance(self) -> float:
        """Of the bytes held: by how many run, and by their lengths."""
        return self.requests * (AT_A_MOMENT * self.bytes) ** 2 * (self.swing + SPREAD)


def for_kv(holdings: Sequence[Holding], room: float) -> list[Queue]:
    """Each member's wait for KV in a unit with `room` bytes of it.

    Who makes the sum vary waits for it: quotas keep the others' parts free.
    """
    held = sum(one.requests * one.bytes for one in holdings)
    variance = sum(one.variance for one in holdings)
    if held >= room:
        return [FOR_EVER for _ in holdings]
    if variance <= 0:
        return [NEVER for _ in holdings]
    chance = _chance_of_waiting((room - held) / sqrt(variance))
    typical = variance / held
    parts = [chance * one.variance / variance for one in holdings]
    return [
        Queue(chance=part, mean=part * one.seconds * typical / (room - held))
        for part, one in zip(parts, holdings, strict=True)
    ]


def _chance_of_waiting(spare: float) -> float:
    """Halfin and Whitt's; `spare`: capacity above the mean load in standard deviations."""
    below = 0.5 * (1 + erf(spare / sqrt(2)))
    density = exp(-spare * spare / 2) / sqrt(2 * pi)
    return density / (density + spare * below) if density > 0 else 0.0
