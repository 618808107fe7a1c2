"""Step times over the batch at one degree, share and length, read as MuxServe's planner reads them.

`decode_s` and `prefill_s` are lists by position: the released planner finds a position among the
decode batches and takes the same position of the prefill list, even where the two lists were
measured at different batches. That is kept, because its published numbers depend on it.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mux_core.costmodel.table import StepRow, StepTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One LLM at one (tensor, decode share): what a batch of x costs.

    `overhead_s`: scheduling seconds per sequence and decode step. `output_tokens`: steps per
    request. `steps` and `prefills` tabulate whole batches 0..cap once for the search loops.
    """

    batches: tuple[int, ...]
    decode_s: tuple[float, ...]
    prefill_s: tuple[float, ...]
    overhead_s: float
    output_tokens: float
    interpolate: bool = False
    steps: tuple[float, ...] = field(init=False, repr=False, compare=False)
    prefills: tuple[float, ...] = field(init=False, repr=False, compare=False)
    rising_to: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        whole = range(self.batches[-1] + 1)
        object.__setattr__(self, "steps", tuple(self.decode_time(x) for x in whole))
        object.__setattr__(self, "prefills", tuple(self.prefill_time(x) for x in whole))
        object.__setattr__(self, "rising_to", self._rising_to())

    def decode_time(self, batch: float) -> float:
        """Seconds of one decode step of `batch` sequences."""
        return self._read(self.decode_s, batch) + batch * self.overhead_s

    def prefill_time(self, batch: float) -> float:
        """Seconds to prefill `batch` prompts at all SMs."""
        return self._read(self.prefill_s, batch)

    def least_batch(self, rate: float, prefill_s: float, start: int, cap: int) -> int:
        """The smallest batch from `start` on that serves `rate` beside `prefill_s`, else `cap`.

        Not for interpolated times: between two measured batches a larger one serves more.
        """
        per_sequence = 1.0 - rate * self.output_tokens * self.overhead_s
        for at in range(bisect_left(self.batches, start), len(self.batches)):
            end = min(self.batches[at], cap)
            if self.throughput(end, prefill_s) >= rate:
                spent = self.output_tokens * self.decode_s[at] + prefill_s
                batch = max(start, int(rate * spent / per_sequence) - 1)
                while self.throughput(batch, prefill_s) < rate:
                    batch += 1
                return batch
            if end >= cap:
                break
            start = end + 1
        return cap

    def throughput(self, batch: int, prefill_s: float) -> float:
        """Requests/s of a batch beside `prefill_s` seconds of prefills per cycle."""
        return batch / (self.steps[batch] * self.output_tokens + prefill_s)

    def segment_end(self, batch: int) -> int:
        """The measured batch whose times `batch` is priced at."""
        return self.batches[bisect_left(self.batches, batch)]

    def _rising_to(self) -> int:
        """The largest batch up to which a larger batch never prefills faster."""
        for batch in range(2, len(self.prefills)):
            if self.prefills[batch] < self.prefills[batch - 1]:
                return batch - 1
        return len(self.prefills) - 1

    def _read(self, values: Sequence[float], batch: float) -> float:
        at = min(bisect_left(self.batches, batch), len(values) - 1)
        if not self.interpolate or at == 0:
            return values[at]
        low, high = self.batches[at - 1], self.batches[at]
        part = (batch - low) / (high - low)
        return values[at - 1] + part * (values[at] - values[at - 1])


def decode_curve(
    table: StepTable, *, tensor: int, percent: int, tokens: float, running_mean: bool
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(batches, seconds): per batch the mean over lengths up to the first beyond `tokens`."""
    batches: list[int] = []
    values: list[float] = []
    for batch, rows in _by_batch(table.rows(tensor, percent)):
        seen: list[float] = []
        means: list[float] = []
        for row in rows:
            if row.decode_s is None:
                continue
            seen.append(row.decode_s)
            means.append(sum(seen) / len(seen) if running_mean else row.decode_s)
            if row.tokens > tokens:
                break
        if means:
            batches.append(batch)
            values.append(sum(means) / len(means))
    return tuple(batches), tuple(values)


def prefill_curve(table: StepTable, *, tensor: int, tokens: float) -> tuple[float, ...]:
    """Seconds per measured batch at all SMs: the first length beyond `tokens`, else the last."""
    values: list[float] = []
    for _, rows in _by_batch(table.rows(tensor, 100)):
        last: float | None = None
        for row in rows:
            if row.prefill_s is None:
                continue
            last = row.prefill_s
            if row.tokens > tokens:
                break
        if last is not None:
            values.append(last)
    return tuple(values)


def _by_batch(rows: tuple[StepRow, ...]) -> Iterator[tuple[int, tuple[StepRow, ...]]]:
    groups: dict[int, list[StepRow]] = {}
    for row in rows:
        groups.setdefault(row.batch, []).append(row)
    for batch in sorted(groups):
        yield batch, tuple(groups[batch])
