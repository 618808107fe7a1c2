"""Synthetic traffic: one seeded stream of requests per LLM, merged in order of time.

Every LLM draws from generators of its own, seeded by the run's seed and its name, so that adding,
dropping or renaming another LLM changes none of its requests; a longer run begins with the same
requests. Gaps are drawn in *operational time*, in which one request comes per unit on average, and
carried to the clock by the cumulated rate: exact for Poisson arrivals whose rate moves.
"""

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mux_core.errors import SpecError
from mux_core.llm import Llm
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.lengths import Lengths, LengthShape, lengths_of
from mux_core.units import ModelName

Floats = NDArray[np.float64]

DRAWN_AT_ONCE: Final = 1024
"""Requests drawn together; part of what a seed means, since generators are read in this order."""
LONGEST: Final = 2048
"""Tokens an LLM takes where its geometry is not known; LLaMA's context, as MuxServe ran it."""
DAY_STEPS: Final = 288


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Factors on a rate: `factors[i]` holds from `starts[i]` s on, the last one for ever."""

    starts: tuple[float, ...] = (0.0,)
    factors: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.starts or self.starts[0] != 0 or len(self.starts) != len(self.factors):
            raise SpecError(f"rate curve: begins at {self.starts[:1]}; give one factor per start, "
                            "the first at 0")  # fmt: skip
        if any(late <= early for early, late in zip(self.starts, self.starts[1:], strict=False)):
            raise SpecError(f"rate curve: starts {list(self.starts)} do not ascend")
        if not all(0 <= factor < 1e6 for factor in self.factors):
            raise SpecError(f"rate curve: factors {list(self.factors)}; each at least 0")

    def at(self, time: float) -> float:
        """The factor at `time`."""
        index = int(np.searchsorted(self.starts, time, side="right")) - 1
        return self.factors[max(0, index)]

    def times(self, other: "RateCurve") -> "RateCurve":
        """Both at once: the product."""
        starts = tuple(sorted({*self.starts, *other.starts}))
        return RateCurve(starts, tuple(self.at(s) * other.at(s) for s in starts))


STEADY: Final = RateCurve()


def day_curve(low: float, day: float = 86_400.0, days: int = 1) -> RateCurve:
    """A sinusoid between `low` at the start of a day and 1 at its noon, in steps of 1/288 day."""
    steps = np.arange(DAY_STEPS * days)
    phase = 2 * np.pi * (steps + 0.5) / DAY_STEPS
    factors = low + (1 - low) * (1 - np.cos(phase)) / 2
    return RateCurve(tuple((steps * day / DAY_STEPS).tolist()), tuple(factors.tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What one LLM is asked for: `rate` requests/s times `curve`, gaps of squared coefficient of
    variation `burstiness` (1 = Poisson), token lengths.
    """

    model: ModelName
    rate: float
    lengths: Lengths
    burstiness: float = 1.0
    curve: RateCurve = STEADY


def streams_of(
    llms: Sequence[Llm],
    *,
    load: float = 1.0,
    shape: LengthShape = LengthShape.SHAREGPT,
    curve: RateCurve = STEADY,
) -> tuple[Stream, ...]:
    """The streams that the LLMs' demand states, every rate times `load` and `curve`."""
    return tuple(
        Stream(
            model=llm.name,
            rate=llm.demand.rate * load,
            lengths=lengths_of(
                shape,
                prompt=llm.demand.prompt_tokens,
                output=llm.demand.output_tokens,
                longest=LONGEST if llm.geometry is None else llm.geometry.max_model_len,
                subject=f"model {llm.name}",
            ),
            burstiness=llm.demand.burstiness,
            curve=curve,
        )
        for llm in llms
    )


def swapped(
    streams: Sequence[Stream], pairs: Mapping[ModelName, ModelName], at: float
) -> tuple[Stream, ...]:
    """Each LLM of `pairs` takes over the other's rate at `at` seconds; lengths stay its own."""
    rates = {stream.model: stream.rate for stream in streams}
    partner = {**pairs, **{other: model for model, other in pairs.items()}}
    for model in partner:
        if model not in rates:
            raise SpecError(f"swap: model {model} is not in the workload")
    return tuple(
        Stream(
            model=stream.model,
            rate=stream.rate,
            lengths=stream.lengths,
            burstiness=stream.burstiness,
            curve=stream.curve.times(_swap_curve(stream.rate, rates[partner[stream.model]], at)),
        )
        if stream.model in partner
        else stream
        for stream in streams
    )


def _swap_curve(own: float, other: float, at: float) -> RateCurve:
    if not at > 0:
        raise SpecError(f"swap: at {at:g} s; after the start")
    if own <= 0:
        raise SpecError("swap: an LLM without demand cannot take over a rate; give it a small one")
    return RateCurve((0.0, at), (1.0, other / own))


def popularity_pairs(llms: Sequence[Llm]) -> Mapping[ModelName, ModelName]:
    """Hot with cold, among LLMs of equal cost: swapping their rates keeps the total feasible."""
    alike: dict[object, list[Llm]] = {}
    for llm in llms:
        alike.setdefault((llm.profile, llm.geometry), []).append(llm)
    pairs: dict[ModelName, ModelName] = {}
    for group in alike.values():
        ranked = sorted(group, key=lambda llm: (-llm.demand.rate, llm.name))
        for hot, cold in zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False):
            pairs[hot.name] = cold.name
    return pairs


def arrivals(streams: Sequence[Stream], *, seed: int, until: float) -> Iterator[Arrival]:
    """All requests before `until` seconds, by time, ties by name; drawn as they are read."""
    ordered = sorted(streams, key=lambda stream: stream.model)
    # heapq.merge is stable: of two requests at one time, the first stream's comes first.
    return heapq.merge(*(_requests(s, seed, until) for s in ordered), key=attrgetter("at"))


def _requests(stream: Stream, seed: int, until: float) -> Iterator[Arrival]:
    clock = _Clock(stream)
    gaps, sizes = (_generator(seed, stream.model, what) for what in ("gaps", "sizes"))
    passed = 0.0
    while passed < clock.passed_by(until):
        drawn = gaps.gamma(1 / stream.burstiness, stream.burstiness, DRAWN_AT_ONCE)
        moments = passed + np.cumsum(drawn)
        prompts, outputs = stream.lengths.draw(sizes.random((DRAWN_AT_ONCE, 2)))
        passed = float(moments[-1])
        times = clock.times(moments[: int(np.searchsorted(moments, clock.passed_by(until)))])
        lengths = zip(prompts.tolist(), outputs.tolist(), strict=True)
        for at, (prompt, output) in zip(times.tolist(), lengths, strict=False):
            yield Arrival(at, stream.model, prompt, output)


def _generator(seed: int, model: str, what: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{what}/{model}".encode()).digest()
    words = [int.from_bytes(digest[at : at + 4], "big") for at in range(0, 16, 4)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


class _Clock:
    """Operational time to seconds: the inverse of the cumulated rate."""

    def __init__(self, stream: Stream) -> None:
        self._starts = np.array(stream.curve.starts)
        self._rates = stream.rate * np.array(stream.curve.factors)
        self._passed = np.concatenate(([0.0], np.cumsum(self._rates[:-1] * np.diff(self._starts))))

    def passed_by(self, until: float) -> float:
        """Requests expected before `until` seconds."""
        index = int(np.searchsorted(self._starts, until, side="right")) - 1
        return float(self._passed[index] + self._rates[index] * (until - self._starts[index]))

    def times(self, moments: Floats) -> Floats:
        """Seconds; a moment never falls into a stretch without requests."""
        index = np.searchsorted(self._passed, moments, side="right") - 1
        since = (moments - self._passed[index]) / self._rates[index]
        found: Floats = self._starts[index] + since
        return found
