"""The analytic model of one device, fitted to what was measured there.

A step's time is a sum of non-negative parts, each proportional to what a model's shape and the
step's size say: a part per step, one per layer, bytes of weights, multiplications, bytes of KV,
work per sequence and layer. The rates are found by least squares on relative errors (an error of
1 ms matters more in a step of 2 ms), for every share by itself. So a model that was never measured
gets times from those that were.

How far to trust them says the cross-validation: each model is predicted from the others alone, or,
where there is only one, each part of its points from the rest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from mux_core.costmodel.profile_set import ProfileSet
from mux_core.costmodel.table import StepRow, StepTable, step_table
from mux_core.engine import Phase
from mux_core.errors import SpecError
from mux_core.llm import ModelGeometry

FOLDS: Final = 4
"""Parts of the points of a lonely model; each is predicted from the others."""
FEW: Final = 4
SHORT: Final = 128
"""Regions of the error: batches up to `FEW`, lengths up to `SHORT` tokens."""

PARTS: Final[Mapping[Phase, tuple[str, ...]]] = {
    Phase.DECODE: ("step", "layers", "weights", "flops", "kv", "sequences", "attention"),
    Phase.PREFILL: ("step", "layers", "weights", "flops", "attention", "tokens"),
}
"""What each rate multiplies: `step` 1, layers, bytes of weights, multiply-adds times two, bytes of
KV read, sequences (tokens) times layers, multiply-adds of attention times two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured step of one model."""

    model: str
    geometry: ModelGeometry
    phase: Phase
    percent: int
    batch: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Seconds per unit of every part, by phase and share, for one GPU type."""

    gpu: str
    rates: Mapping[tuple[Phase, int], tuple[float, ...]]

    def seconds(
        self, geometry: ModelGeometry, phase: Phase, *, percent: int, batch: int, tokens: int
    ) -> float:
        """The fitted time of a step. Raises SpecError for a share that no model was measured at."""
        rates = self.rates.get((phase, percent))
        if rates is None:
            raise SpecError(f"fit for {self.gpu}: {phase} at {percent}% was not measured; measured "
                            f"shares: {sorted({p for _, p in self.rates})}")  # fmt: skip
        return float(np.dot(_parts(geometry, phase, batch, tokens), rates))

    def rate(self, phase: Phase, percent: int, part: str) -> float | None:
        """Units of a part per second: FLOP/s, bytes/s; None where it costs nothing."""
        seconds = self.rates[phase, percent][PARTS[phase].index(part)]
        return 1 / seconds if seconds > 0 else None

    def table(self, geometry: ModelGeometry, grid: Sequence[StepRow]) -> StepTable:
        """The times of a model at the points where `grid` has times."""
        rows = [self._row(geometry, row) for row in grid
                if row.batch * row.tokens and row.tokens <= geometry.max_model_len]  # fmt: skip
        return step_table(geometry.architecture, self.gpu, rows)

    def _row(self, geometry: ModelGeometry, row: StepRow) -> StepRow:
        def at(phase: Phase, measured: float | None) -> float | None:
            if measured is None:
                return None
            return self.seconds(geometry, phase, percent=row.percent, batch=row.batch,
                                tokens=row.tokens)  # fmt: skip

        return StepRow(tensor=row.tensor, percent=row.percent, batch=row.batch, tokens=row.tokens,
                       prefill_s=at(Phase.PREFILL, row.prefill_s),
                       decode_s=at(Phase.DECODE, row.decode_s))  # fmt: skip


def fit_device(profiles: Sequence[ProfileSet]) -> Fit:
    """The fit to all models of profiles of one device."""
    gpus = sorted({profile.gpu for profile in profiles})
    if len(gpus) != 1:
        raise SpecError(f"fit: profiles of {', '.join(gpus) or 'no device'}; give those of one")
    return _fit(gpus[0], list(samples(profiles)))


def samples(profiles: Sequence[ProfileSet]) -> Iterator[Sample]:
    """Every measured time of models on one GPU each."""
    for profile in profiles:
        for model in profile.models:
            for row in (row for cell in model.table.cells.values() for row in cell):
                if row.tensor != 1:
                    continue
                for phase, seconds in (
                    (Phase.PREFILL, row.prefill_s),
                    (Phase.DECODE, row.decode_s),
                ):
                    if seconds is not None:
                        yield Sample(model=model.name, geometry=model.geometry, phase=phase,
                                     percent=row.percent, batch=row.batch, tokens=row.tokens,
                                     seconds=seconds)  # fmt: skip


def _fit(gpu: str, found: Sequence[Sample]) -> Fit:
    groups: dict[tuple[Phase, int], list[Sample]] = {}
    for sample in found:
        groups.setdefault((sample.phase, sample.percent), []).append(sample)
    return Fit(gpu=gpu, rates={key: _rates(group) for key, group in sorted(groups.items())})


def _rates(group: Sequence[Sample]) -> tuple[float, ...]:
    rows = np.array([_parts(s.geometry, s.phase, s.batch, s.tokens) for s in group])
    seconds = np.array([s.seconds for s in group])
    relative = rows / seconds[:, None]
    # Columns span 12 orders of magnitude; scaled, the solver's tolerance means the same for each.
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1.0
    solved, _ = nnls(relative / scale, np.ones(len(group)))
    return tuple(float(value) for value in solved / scale)


def _parts(
    geometry: ModelGeometry, phase: Phase, batch: int, tokens: int
) -> NDArray[np.float64]:  # fmt: skip
    """How much of every part a step has, in the order of `PARTS`."""
    g = geometry
    body = g.layers * (g.hidden * g.head_dim * (2 * g.heads + 2 * g.kv_heads)
                       + 3 * g.hidden * g.intermediate)  # fmt: skip
    head = g.hidden * g.vocab
    weights = (body + head) * g.dtype.itemsize
    if phase is Phase.DECODE:
        kv = batch * tokens * g.kv_bytes_per_token
        attention = 2 * g.layers * g.heads * g.head_dim * batch * tokens
        return np.array([1, g.layers, weights, 2 * (body + head) * batch, kv, batch * g.layers,
                         attention], dtype=np.float64)  # fmt: skip
    attention = 2 * g.layers * g.heads * g.head_dim * batch * tokens * tokens
    dense = 2 * (body * batch * tokens + head * batch)
    return np.array([1, g.layers, weights, dense, attention, batch * tokens * g.layers],
                    dtype=np.float64)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionError:
    """How far predictions of unseen steps are off in one region: relative, absolute value."""

    region: str
    steps: int
    median: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossValidation:
    """The errors by region, of all steps first; `how` says what was left out in turn."""

    how: str
    errors: tuple[RegionError, ...]


def cross_validate(profiles: Sequence[ProfileSet]) -> CrossValidation:
    """Predicts what was measured from what else was."""
    gpu = profiles[0].gpu
    found = list(samples(profiles))
    models = sorted({sample.model for sample in found})
    by_model = len(models) > 1
    held_by: Callable[[int, Sample], int] = (
        (lambda _, sample: models.index(sample.model)) if by_model
        else (lambda index, _: index % FOLDS)
    )  # fmt: skip
    off: list[tuple[Sample, float]] = []
    for fold in range(len(models) if by_model else FOLDS):
        held = [s for index, s in enumerate(found) if held_by(index, s) == fold]
        rest = [s for index, s in enumerate(found) if held_by(index, s) != fold]
        fit = _fit(gpu, rest)
        off += [(s, _error(fit, s)) for s in held if (s.phase, s.percent) in fit.rates]
    how = "each model from the others" if by_model else f"each of {FOLDS} parts from the others"
    return CrossValidation(how=how, errors=tuple(_by_region(off)))


def _error(fit: Fit, sample: Sample) -> float:
    predicted = fit.seconds(sample.geometry, sample.phase, percent=sample.percent,
                            batch=sample.batch, tokens=sample.tokens)  # fmt: skip
    return abs(predicted / sample.seconds - 1)


def _by_region(off: Sequence[tuple[Sample, float]]) -> Iterator[RegionError]:
    regions: dict[str, list[float]] = {"all": [error for _, error in off]}
    for sample, error in off:
        regions.setdefault(_region(sample), []).append(error)
    for region, errors in sorted(regions.items(), key=lambda item: (item[0] != "all", item[0])):
        yield RegionError(region=region, steps=len(errors), median=median(errors),
                          p90=float(np.percentile(errors, 90)))  # fmt: skip


def _region(sample: Sample) -> str:
    batch = f"batch <= {FEW}" if sample.batch <= FEW else f"batch > {FEW}"
    length = f"<= {SHORT} tokens" if sample.tokens <= SHORT else f"> {SHORT} tokens"
    return f"{sample.phase}, {sample.percent} %, {batch}, {length}"
