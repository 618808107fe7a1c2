"""Measured step times as rows in file order; the order carries meaning for the exact replay."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from types import MappingProxyType

from mux_core.data import read_text
from mux_core.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One measurement: a whole prefill of `batch` x `tokens`, or one decode step at that context.

    Times in seconds; None where that phase was not measured.
    """

    tensor: int
    percent: int
    batch: int
    tokens: int
    prefill_s: float | None
    decode_s: float | None

    def slowed(self, times: float) -> "StepRow":
        """The same where everything takes that many times as long."""
        return replace(
            self,
            prefill_s=None if self.prefill_s is None else self.prefill_s * times,
            decode_s=None if self.decode_s is None else self.decode_s * times,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """All rows of one model on one GPU type, grouped by (tensor, percent), order kept."""

    model: str
    gpu: str
    cells: Mapping[tuple[int, int], tuple[StepRow, ...]]

    @property
    def tensors(self) -> tuple[int, ...]:
        return tuple(sorted({tensor for tensor, _ in self.cells}))

    def percents(self, tensor: int) -> tuple[int, ...]:
        return tuple(sorted(percent for degree, percent in self.cells if degree == tensor))

    def rows(self, tensor: int, percent: int) -> tuple[StepRow, ...]:
        """Rows of one degree and share. Raises SpecError when that pair was not measured."""
        found = self.cells.get((tensor, percent))
        if found is None:
            raise SpecError(
                f"profile {self.model}: tensor {tensor} at {percent}% of the SMs was not measured; "
                f"measured degrees: {self.tensors}"
            )
        return found

    def slowed(self, times: float) -> "StepTable":
        """The same where everything takes that many times as long."""
        cells = {key: tuple(row.slowed(times) for row in rows) for key, rows in self.cells.items()}
        return replace(self, cells=MappingProxyType(cells))


def step_table(model: str, gpu: str, rows: Iterable[StepRow]) -> StepTable:
    """Groups rows by (tensor, percent), dropping those with neither phase."""
    cells: dict[tuple[int, int], list[StepRow]] = {}
    for row in rows:
        if row.prefill_s is not None or row.decode_s is not None:
            cells.setdefault((row.tensor, row.percent), []).append(row)
    frozen = {key: tuple(found) for key, found in cells.items()}
    return StepTable(model=model, gpu=gpu, cells=MappingProxyType(frozen))


@cache
def shipped_tables() -> Mapping[str, StepTable]:
    """The A100-80GB LLaMA tables by profile name (`llama-7b`); raw, outliers included."""
    found: dict[str, list[StepRow]] = {}
    for line in csv.DictReader(StringIO(read_text("a100_llama.csv"))):
        found.setdefault(line["model"], []).append(
            StepRow(
                tensor=int(line["ngpu_tp"]),
                percent=int(line["sm_pct"]),
                batch=int(line["batch"]),
                tokens=int(line["seqlen"]),
                prefill_s=_seconds(line["prefill_ms"]),
                decode_s=_seconds(line["decode_ms"]),
            )
        )
    tables = {name: step_table(name, "a100-80gb", rows) for name, rows in sorted(found.items())}
    return MappingProxyType(tables)


def _seconds(milliseconds: str) -> float | None:
    return float(milliseconds) / 1000 if milliseconds else None
