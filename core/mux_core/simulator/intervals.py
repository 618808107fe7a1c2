"""95 % intervals over runs of different seeds, for figures that are no plain means.

A figure of several runs is worked out from all of them together, so its interval comes from
leaving each run out in turn (the jackknife): the pseudo-values n*f(all) - (n-1)*f(all but one) are
treated like n independent observations, with Student's t. For a mean that is the usual interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import stdtrit

Run = TypeVar("Run")
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, and where its expectation lies with 95 % confidence; open with one run."""

    value: float
    low: float | None
    high: float | None

    def within(self, least: float, most: float) -> "Interval":
        """The same, cut to what the figure can be."""
        if self.low is None or self.high is None:
            return self
        return Interval(self.value, max(least, self.low), min(most, self.high))


def interval(figure: Callable[[Sequence[Run]], float], runs: Sequence[Run]) -> Interval:
    """`figure` of all runs with its interval."""
    return _jackknife(
        figure(runs), [figure([*runs[:k], *runs[k + 1 :]]) for k in range(len(runs))]
        if len(runs) > 1 else [],
    )  # fmt: skip


def paired_difference(
    figure: Callable[[Sequence[Run]], float], ours: Sequence[Run], theirs: Sequence[Run]
) -> Interval:
    """`figure(ours) - figure(theirs)`; run k of both had the same seed, hence the same arrivals."""
    pairs = list(zip(ours, theirs, strict=True))

    def difference(chosen: Sequence[tuple[Run, Run]]) -> float:
        return figure([one for one, _ in chosen]) - figure([other for _, other in chosen])

    return interval(difference, pairs)


def _jackknife(whole: float, without: Sequence[float]) -> Interval:
    count = len(without)
    if count < 2:
        return Interval(whole, None, None)
    pseudo = count * whole - (count - 1) * np.asarray(without)
    t = float(stdtrit(count - 1, (1 + LEVEL) / 2))
    half = t * float(pseudo.std(ddof=1)) / float(np.sqrt(count))
    return Interval(whole, whole - half, whole + half)
