"""Measured points as a profile: tables by model, costs, pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scipy.optimize import nnls

from mux_core.costmodel.profile import Profile
from mux_core.costmodel.profile_set import (
    CPU,
    MadeOn,
    ModelProfile,
    PairTimes,
    ProfileSet,
    Served,
    Stretch,
    UnitCost,
    Work,
    planning_table,
)
from mux_core.costmodel.table import StepRow, step_table
from mux_core.llm import ModelGeometry
from mux_runtime.profiling.journal import Value
from mux_runtime.profiling.points import Kind, Point
from mux_runtime.profiling.unit_cost import CONTEXT


def assemble(
    found: Mapping[str, Value], points: Sequence[Point], *, gpu: str, made: MadeOn,
    geometries: Mapping[str, ModelGeometry], left_out: Sequence[str],
) -> ProfileSet:  # fmt: skip
    """The profile of what was measured. `geometries` by model, in the order of the profile."""
    models = [_model(name, geometry, found, points, gpu) for name, geometry in geometries.items()]
    unit: UnitCost | None = None
    for point in points:
        if point.kind is Kind.UNIT and point.key in found:
            told = found[point.key]
            unit, made = _unit(told["cost"]), replace(made, yardstick_s=told["yardstick_s"])
            models = [_with_served(m, told["steps"], point.percent, made) for m in models]
    pairs = tuple(
        PairTimes(sides=point.pair, alone_s=_two(found[point.key]["alone_s"]),
                  together_s=_two(found[point.key]["together_s"]))
        for point in points if point.pair is not None and point.key in found
    )  # fmt: skip
    return ProfileSet(gpu=gpu, made=made, models=tuple(models), pairs=pairs, unit=unit,
                      left_out=tuple(left_out))  # fmt: skip


def _model(
    name: str, geometry: ModelGeometry, found: Mapping[str, Value], points: Sequence[Point],
    gpu: str,
) -> ModelProfile:  # fmt: skip
    own = [point for point in points if point.model == name and point.key in found]
    cells: dict[tuple[int, int, int], dict[Kind, float]] = {}
    once: dict[Kind, float] = {}
    for point in own:
        value = found[point.key]
        if point.kind in (Kind.PREFILL, Kind.DECODE):
            cell = cells.setdefault((point.percent, point.batch, point.tokens), {})
            cell[point.kind] = float(value["s"])
        else:
            once[point.kind] = float(value.get("s", value.get("bytes", 0)))
    rows = [
        StepRow(tensor=1, percent=percent, batch=batch, tokens=tokens,
                prefill_s=cell.get(Kind.PREFILL), decode_s=cell.get(Kind.DECODE))
        for (percent, batch, tokens), cell in sorted(cells.items())
    ]  # fmt: skip
    return ModelProfile(name=name, geometry=geometry, table=step_table(name, gpu, rows),
                        grant_s=once.get(Kind.GRANT, 0.0), handoff_s=once.get(Kind.HANDOFF, 0.0),
                        host_bytes=int(once.get(Kind.MEMORY, 0)))  # fmt: skip


def _unit(cost: Value) -> UnitCost:
    works = {who: Work(**cost[who]) for who in ("scheduler", "client")}
    return UnitCost(**{**cost, **works})


def _with_served(
    model: ModelProfile, steps: Mapping[str, Value], percent: int, made: MadeOn
) -> ModelProfile:
    """With how its steps in the unit compare with those on the bench, if it was served there."""
    if model.name not in steps:
        return model
    own, bench = steps[model.name], Profile(planning_table(model, made, CPU))
    most = bench.largest_batch(1)  # of more, the bench has nothing to compare with
    decode = tuple(
        (batch, served_s / bench.decode_s(tensor=1, percent=percent, batch=batch, context=CONTEXT))
        for batch, served_s in zip(own["batches"], own["decode_s"], strict=True)
        if batch <= most
    )
    prefills = [
        (bench.prefill_s(tensor=1, percent=percent, batch=1, tokens=tokens), served_s)
        for tokens, served_s in zip(own["prompts"], own["prefill_s"], strict=True)
    ]
    return replace(model, served=Served(decode=decode, prefill=_stretch(prefills),
                                        together=len(steps) > 1))  # fmt: skip


def _stretch(steps: Sequence[tuple[float, float]]) -> Stretch:
    """The one whose relative errors are the smallest, of seconds on the bench and in the unit."""
    (times, longer_s), _ = nnls([(1.0, 1 / bench_s) for bench_s, _ in steps],
                                [served_s / bench_s for bench_s, served_s in steps])  # fmt: skip
    return Stretch(times=float(times), longer_s=float(longer_s))


def _two(values: Sequence[float]) -> tuple[float, float]:
    first, second = values
    return float(first), float(second)
