"""Step times of one LLM on one GPU type, whatever they come from.

Three sources behind one type: shipped measurements, tables written by `muxserve profile`, and the
analytic roofline. All are tables on a grid, read by interpolation over batch, length and SM share.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

from mux_core.costmodel.roofline import roofline_table
from mux_core.costmodel.smoothing import smooth
from mux_core.costmodel.table import StepTable, shipped_tables
from mux_core.errors import SpecError
from mux_core.llm import Llm

SMALL_SHARE_EXPONENT = 0.8
"""Below the smallest measured share a step is taken to slow by (share ratio)^-0.8; unmeasured."""
_NONE: Mapping[str, StepTable] = MappingProxyType({})
_Grid = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(slots=True)
class StepCurve:
    """Seconds of a step over the batch, linear between points and beyond the last."""

    points: tuple[float, ...]
    values: tuple[float, ...]
    overhead_s: float
    cheapest_s: float = field(init=False)
    """Seconds per sequence at the batch that decodes fastest; a step that grows faster than its
    batch has one."""
    _slopes: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        pairs = zip(pairwise(self.points), pairwise(self.values), strict=True)
        self._slopes = tuple((b - a) / (high - low) for (low, high), (a, b) in pairs)
        each = [value / at for at, value in zip(self.points, self.values, strict=True) if at > 0]
        last = self._slopes[-1] if self._slopes else 0.0
        self.cheapest_s = min([*each, last]) + self.overhead_s

    def at(self, batch: float) -> float:
        points = self.points
        if batch <= points[0] or not self._slopes:
            return self.values[0] + batch * self.overhead_s
        index = bisect_left(points, batch)
        index = min(index, len(points) - 1) - 1
        step = self.values[index] + self._slopes[index] * (batch - points[index])
        return step + batch * self.overhead_s


@dataclass(slots=True)
class Profile:
    """Prefill and decode seconds by tokens, batch, SM share and degree. Remembers what it read."""

    table: StepTable
    _decode: dict[tuple[int, int, float], _Grid] = field(default_factory=dict)
    _curves: dict[tuple[int, int, float], _Grid] = field(default_factory=dict)
    _prefill: dict[tuple[int, int, float], _Grid] = field(default_factory=dict)
    _percents: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def decode_s(self, *, tensor: int, percent: int, batch: float, context: float) -> float:
        """Seconds of one decode step."""
        curve = self.decode_curve(tensor=tensor, percent=percent, context=context)
        return curve.at(batch)

    def decode_curve(
        self, *, tensor: int, percent: int, context: float, overhead_s: float = 0.0
    ) -> "StepCurve":
        """Decode steps over the batch; `overhead_s` is added per sequence."""
        key = (tensor, percent, context)
        grid = self._curves.get(key)
        if grid is None:
            grid = self._curves[key] = self._decode_curve(tensor, percent, context)
        return StepCurve(*grid, overhead_s)

    def _decode_curve(self, tensor: int, percent: int, context: float) -> _Grid:
        """(batches, seconds) at one share, between the measured shares around it."""
        low, high, part, slower = self._between(tensor, percent)
        below = self._decode_grid(tensor, low, context)
        above = self._decode_grid(tensor, high, context)
        points = tuple(sorted({*below[0], *above[0]}))
        values = tuple(
            ((1 - part) * _interpolate(below, at) + part * _interpolate(above, at)) * slower
            for at in points
        )
        return points, values

    def prefill_s(self, *, tensor: int, percent: int, batch: float, tokens: float) -> float:
        """Seconds to prefill `batch` prompts."""
        low, high, part, slower = self._between(tensor, percent)
        below = _interpolate(self._prefill_grid(tensor, low, tokens), batch)
        above = below if high == low else _interpolate(
            self._prefill_grid(tensor, high, tokens), batch)  # fmt: skip
        return (below + part * (above - below)) * slower

    def largest_batch(self, tensor: int) -> int:
        return max(row.batch for row in self.table.rows(tensor, 100) if row.decode_s is not None)

    def _between(self, tensor: int, percent: int) -> tuple[int, int, float, float]:
        """(lower share, upper share, part of the way, slowdown below the smallest share)."""
        if tensor not in self._percents:
            self._percents[tensor] = self.table.percents(tensor)
        shares = self._percents[tensor]
        if percent <= shares[0]:
            return shares[0], shares[0], 0.0, (shares[0] / percent) ** SMALL_SHARE_EXPONENT
        at = min(bisect_left(shares, percent), len(shares) - 1)
        low, high = shares[at - 1], shares[at]
        return low, high, min(1.0, (percent - low) / (high - low)), 1.0

    def _decode_grid(self, tensor: int, percent: int, context: float) -> _Grid:
        key = (tensor, percent, context)
        if key not in self._decode:
            self._decode[key] = self._grid(tensor, percent, context, decode=True)
        return self._decode[key]

    def _prefill_grid(self, tensor: int, percent: int, tokens: float) -> _Grid:
        key = (tensor, percent, tokens)
        if key not in self._prefill:
            self._prefill[key] = self._grid(tensor, percent, tokens, decode=False)
        return self._prefill[key]

    def _grid(self, tensor: int, percent: int, tokens: float, *, decode: bool) -> _Grid:
        """(batches, seconds) at one length; rising in the batch, as time must."""
        by_batch: dict[int, list[tuple[float, float]]] = {}
        for row in self.table.rows(tensor, percent):
            value = row.decode_s if decode else row.prefill_s
            if value is not None:
                by_batch.setdefault(row.batch, []).append((row.tokens, value))
        batches, values = [], []
        highest = 0.0
        for batch, points in sorted(by_batch.items()):
            points.sort()
            # Prefills of many long prompts were not measured; extrapolate from what was.
            if not decode and len(points) < 2:
                continue
            lengths = tuple(float(length) for length, _ in points)
            seconds = tuple(value for _, value in points)
            highest = max(highest, _interpolate((lengths, seconds), tokens))
            batches.append(float(batch))
            values.append(highest)
        return tuple(batches), tuple(values)


def _interpolate(grid: _Grid, at: float) -> float:
    """Linear between grid points and beyond the last; constant below the first."""
    points, values = grid
    if at <= points[0] or len(points) == 1:
        return values[0]
    index = min(bisect_left(points, at), len(points) - 1)
    low, high = points[index - 1], points[index]
    slope = (values[index] - values[index - 1]) / (high - low)
    return values[index - 1] + slope * (at - low)


def profile_of(llm: Llm, gpu: str, tables: Mapping[str, StepTable] = _NONE) -> Profile:
    """The profile of an LLM: its measured table where it names one, else the roofline.

    `tables` are measured ones beside the shipped, by the name that `Llm.profile` gives.
    """
    if llm.profile is not None:
        table = tables.get(llm.profile) or shipped_tables().get(llm.profile)
        if table is None:
            raise SpecError(f"LLM {llm.name}: profile {llm.profile} unknown; one of "
                            f"{', '.join(shipped_tables())}")  # fmt: skip
        return Profile(smooth(table))
    assert llm.geometry is not None
    return Profile(roofline_table(llm.geometry, gpu))
