"""Which unit is worth most when every request/s and every replica of an LLM has a price.

One group kind and one tenant group. For each box of `relaxation` a dynamic program goes through the
LLMs and keeps, per memory of weights and percent so far, the best value; KV and the box's two
figures are charged at multipliers (Lagrange), which only ever overestimates. Boxes in which a unit
might still be worth more than its GPUs are split and priced again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mux_core.estimator.unit import GroupKind, UnitEstimator
from mux_core.llm import Llm
from mux_core.planners.relaxation import (
    NEVER,
    PERCENT_UNIT,
    Array,
    Choices,
    Whole,
    alike,
    choices,
    first_boxes,
    merged,
)

UNITS = 100 // PERCENT_UNIT
QUANTA = (2000, 400, 100)
"""Parts into which memory of weights is rounded down, as fine as the states stay few."""
FEW_STATES = 20
"""Below, a box costs so little that it is cut twice as often."""
MOST_STATES = 160
SINGLE = 1e-5
"""Beyond what sums of single precision lose."""
SPLIT_WORK = 1_000
"""Boxes cut at a time, times sums of weights."""
MOST_BOXES = 1_500
PATTERNS = 40
Multipliers = tuple[float, float, float]
"""Prices of KV and of a box's two figures, per GPU."""
COARSE: Sequence[Multipliers] = ((0.15, 0.1, 0), (0.5, 0.1, 0.1), (0.15, 0.5, 0.2), (0.9, 0.3, 0))
FINE: Sequence[Multipliers] = tuple(
    (kv, first, second)
    for kv in (0.0, 0.06, 0.14, 0.25, 0.4, 0.6, 0.85, 1.2)
    for first in (0.0, 0.1, 0.4)
    for second in (0.0, 0.15)
)
NEAR = (
    ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    ((0.7, 1.0, 1.0), (0.0, 0.0, 0.0)),
    ((1.4, 1.0, 1.0), (0.02, 0.0, 0.0)),
    ((1.0, 0.0, 1.0), (0.0, 0.0, 0.0)),
    ((1.0, 1.5, 1.0), (0.0, 0.05, 0.0)),
    ((1.0, 1.0, 0.3), (0.0, 0.0, 0.0)),
)
"""Turns of a box's multipliers, and steps, that its parts try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a unit earns, in GPUs: per request/s and per replica, by LLM."""

    rate: Array
    replica: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A unit: rates by LLM, 0 where not a member.

    `gpus` is what it counts for: its GPUs, less what a relaxed one was credited for the memory and
    the parts of figures that it leaves (or charged for those it takes too much of).
    """

    kind: GroupKind
    rates: Array
    members: NDArray[np.bool_]
    gpus: float


@dataclass(slots=True)
class _Boxes:
    """Boxes, and by LLM its levels of choices there.

    `values`: what no unit is worth more than. It is reached at `states`, the place of the sum of
    weights, under `multipliers` [B, 3].
    """

    limits: Array
    choices: list[list[Choices]]
    values: Array
    states: Whole
    multipliers: Array

    def __len__(self) -> int:
        return len(self.values)

    def part(self, which: Whole) -> "_Boxes":
        found = [[option.part(which) for option in options] for options in self.choices]
        return _Boxes(
            self.limits[which],
            found,
            self.values[which],
            self.states[which],
            self.multipliers[which],
        )

    def joined(self, other: "_Boxes") -> "_Boxes":
        found = [
            [one.joined(two) for one, two in zip(options, others, strict=True)]
            for options, others in zip(self.choices, other.choices, strict=True)
        ]
        return _Boxes(
            np.concatenate([self.limits, other.limits]),
            found,
            np.concatenate([self.values, other.values]),
            np.concatenate([self.states, other.states]),
            np.concatenate([self.multipliers, other.multipliers]),
        )


@dataclass(slots=True)
class KindPricing:
    """Units of several members on one kind; `indices` are the LLMs' places among all."""

    estimator: UnitEstimator
    kind: GroupKind
    llms: Sequence[Llm]
    rates: Sequence[float]
    indices: Sequence[int]
    total: int
    boxes: _Boxes = field(init=False)
    _sums: Whole = field(init=False)
    _moves: list[tuple[Whole, Whole]] = field(init=False)
    _quantum: int = field(init=False)
    _groups: list[list[list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lay_out_memory()
        self.boxes = self._made(first_boxes(self.estimator))

    def _made(self, limits: Array) -> _Boxes:
        levels = [
            choices(self.estimator, self.kind, llm, rate, limits)
            for llm, rate in zip(self.llms, self.rates, strict=True)
        ]
        if not self._groups:
            self._groups = [alike(each) for each in levels]
        found = [merged(each, groups) for each, groups in zip(levels, self._groups, strict=True)]
        count = len(limits)
        unknown = np.full(count, np.inf)
        return _Boxes(limits, found, unknown, np.zeros(count, np.intp), np.zeros((count, 3)))

    def _lay_out_memory(self) -> None:
        """Reachable sums of weights, and which leads to which by each LLM."""
        for quantum in QUANTA:
            held = [int(self.estimator.footprint(llm, self.kind) * quantum) for llm in self.llms]
            sums = {0}
            for size in held:
                sums |= {at + size for at in sums if at + size <= quantum}
            if len(sums) <= MOST_STATES:
                break
        self._quantum = quantum
        ordered = sorted(sums)
        place = {at: index for index, at in enumerate(ordered)}
        self._sums = np.array(ordered, dtype=np.intp)
        self._moves = []
        for size in held:
            pairs = [(place[at], place[at + size]) for at in ordered if at + size in place]
            sources, targets = zip(*pairs, strict=True) if pairs else ((), ())
            self._moves.append((np.array(sources, dtype=np.intp), np.array(targets, dtype=np.intp)))

    def price(self, prices: Prices, enough: float, *, splits: int) -> tuple[float, list[Pattern]]:
        """(what no unit is worth more than, units worth about that).

        Nothing below `enough` is looked at closely; the best boxes are cut `splits` times.
        """
        gpus = self.kind.gpus
        self._value(self.boxes, prices, [gpus * np.array([each]) for each in COARSE])
        cheap = 2 if len(self._sums) < FEW_STATES else 1
        for _ in range(splits * cheap):
            top = self._top(self.boxes, enough)
            fine = self.boxes.part(top)
            self._value(fine, prices, [gpus * np.array([each]) for each in self._fine()])
            self.boxes.values[top] = fine.values
            self.boxes.states[top] = fine.states
            self.boxes.multipliers[top] = fine.multipliers
            left = np.flatnonzero(fine.values > enough)
            if not len(left) or len(self.boxes) + 3 * len(left) > MOST_BOXES * cheap:
                break
            children = self._made(_quarters(fine.limits[left]))
            near = np.repeat(fine.multipliers[left], 4, axis=0)
            self._value(children, prices, [near * turn + gpus * np.array(step)
                                           for turn, step in NEAR])  # fmt: skip
            rest = self.boxes.part(np.setdiff1d(np.arange(len(self.boxes)), top[left]))
            self.boxes = rest.joined(children)
        boxes = self.boxes
        best = np.argsort(-boxes.values, kind="stable")[:PATTERNS]
        return float(boxes.values.max()), self._patterns(boxes.part(best), prices)

    def _fine(self) -> Sequence[Multipliers]:
        coupled = any(option.second.any() for options in self.boxes.choices for option in options)
        return [each for each in FINE if coupled or not each[2]]

    def _top(self, boxes: _Boxes, enough: float) -> Whole:
        active = np.flatnonzero(boxes.values > enough)
        return active[np.argsort(-boxes.values[active], kind="stable")][
            : SPLIT_WORK // len(self._sums)
        ]

    def _value(self, boxes: _Boxes, prices: Prices, grid: Sequence[Array]) -> None:
        """Bounds each box: for each sum of weights by the multipliers that suit it best."""
        count, states = len(boxes), len(self._sums)
        left = 1 - self._sums / self._quantum
        least = np.full((count, states), np.inf)
        which = np.zeros((count, states), dtype=np.intp)
        tried = np.array([np.broadcast_to(each, (count, 3)) for each in grid])
        for at, multipliers in enumerate(tried):
            best = self._programmed(boxes, prices, multipliers, None)
            found = best.max(axis=2) + multipliers[:, :1] * left + SINGLE
            found += multipliers[:, 1:].sum(axis=1, keepdims=True)
            which = np.where(found < least, at, which)
            least = np.minimum(found, least)
        boxes.states = least.argmax(axis=1)
        boxes.values = least.max(axis=1)
        every = np.arange(count)
        boxes.multipliers = tried[which[every, boxes.states], every]

    def _programmed(
        self,
        boxes: _Boxes,
        prices: Prices,
        multipliers: Array,
        taken: list[NDArray[np.int8]] | None,
    ) -> NDArray[np.float32]:
        """Best value by box, memory and percent; with `taken`, which level each LLM has there."""
        best = np.full((len(boxes), len(self._sums), UNITS + 1), -np.inf, dtype=np.float32)
        best[:, 0, 0] = 0.0
        for options, index, (sources, targets) in zip(
            boxes.choices, self.indices, self._moves, strict=True
        ):
            before = best[:, sources]
            chosen = None
            if taken is not None:
                chosen = np.full(best.shape, -1, dtype=np.int8)
                taken.append(chosen)
            for level, option in enumerate(options):
                value = _worth(option, prices, index, multipliers).max(axis=1).astype(np.float32)
                with_it = before[:, :, : UNITS + 1 - option.units] + value[:, None, None]
                there = best[:, targets, option.units :]
                best[:, targets, option.units :] = np.maximum(there, with_it)
                if chosen is not None:
                    was = chosen[:, targets, option.units :]
                    chosen[:, targets, option.units :] = np.where(with_it > there, level, was)
        return best

    def _patterns(self, boxes: _Boxes, prices: Prices) -> list[Pattern]:
        """The unit that the program ends with in each box."""
        taken: list[NDArray[np.int8]] = []
        best = self._programmed(boxes, prices, boxes.multipliers, taken)
        picks = [
            [_worth(option, prices, index, boxes.multipliers).argmax(axis=1) for option in options]
            for options, index in zip(boxes.choices, self.indices, strict=True)
        ]
        found: dict[bytes, Pattern] = {}
        for at in range(len(boxes)):
            percent = int(best[at, boxes.states[at]].argmax())
            pattern = self._traced(boxes, at, picks, taken, percent)
            found.setdefault(pattern.rates.tobytes(), pattern)
        return list(found.values())

    def _traced(
        self,
        boxes: _Boxes,
        at: int,
        picks: list[list[Whole]],
        taken: list[NDArray[np.int8]],
        percent: int,
    ) -> Pattern:
        state = int(boxes.states[at])
        room = 1 - self._sums[state] / self._quantum
        rates = np.zeros(self.total)
        members = np.zeros(self.total, dtype=np.bool_)
        used = np.zeros(3)
        for place in range(len(taken) - 1, -1, -1):
            level = int(taken[place][at, state, percent])
            if level < 0:
                continue
            option, pick = boxes.choices[place][level], int(picks[place][level][at])
            index = self.indices[place]
            rates[index], members[index] = option.rate[at, pick], True
            used += (option.kv[at, pick], option.first[at, pick], option.second[at, pick])
            sources, targets = self._moves[place]
            state = int(sources[np.flatnonzero(targets == state)[0]])
            percent -= option.units
        credit = float(boxes.multipliers[at] @ (np.array([room, 1.0, 1.0]) - used))
        return Pattern(kind=self.kind, rates=rates, members=members, gpus=self.kind.gpus - credit)


def _worth(option: Choices, prices: Prices, index: int, multipliers: Array) -> Array:
    return np.asarray(
        np.where(option.rate > NEVER, prices.replica[index], NEVER)
        + prices.rate[index] * option.rate
        - multipliers[:, 0:1] * option.kv
        - multipliers[:, 1:2] * option.first
        - multipliers[:, 2:3] * option.second
    )


def _quarters(boxes: Array) -> Array:
    """Each box cut across both intervals; a wide one in its geometric middle."""
    found = []
    for box in boxes:
        cuts = []
        for low, high in (box[:2], box[2:]):
            middle = (low * high) ** 0.5 if low > 0 and high > 2 * low else (low + high) / 2
            cuts.append(((low, middle), (middle, high)))
        found += [(*one, *other) for one, other in product(*cuts)]
    return np.array(found)
