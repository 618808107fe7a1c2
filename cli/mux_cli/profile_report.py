"""What a profile says at a glance: a picture of its curves and a line per model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mux_core.costmodel.fit import cross_validate, fit_device
from mux_core.costmodel.hardware import GPU_TYPES
from mux_core.costmodel.profile_set import CPU, ModelProfile, ProfileSet, Served
from mux_core.costmodel.table import StepRow
from mux_core.engine import Phase
from mux_core.units import format_bytes

NEAR: Final = 1.1
"""A curve has reached its knee where it is within this factor of its end."""


def summary(profiles: ProfileSet) -> Iterator[str]:
    """A line per model, unit and pair, what a fit makes of it, and what was left out."""
    for model in profiles.models:
        yield _model_line(model, profiles.gpu)
    if profiles.unit is not None:
        unit = profiles.unit
        yield (f"unit: scheduler, front and client add {unit.step_s * 1e3:.2f} ms per step, "
               f"{unit.token_s * 1e3:.3f} ms per token, {unit.request_s * 1e3:.1f} ms per "
               "request")  # fmt: skip
        for who, work in (("scheduler and front", unit.scheduler), ("client", unit.client)):
            yield (f"unit: {who} run {work.step_s * 1e3:.2f} ms per step, "
                   f"{work.token_s * 1e3:.3f} ms per token, {work.request_s * 1e3:.1f} ms per "
                   "request")  # fmt: skip
        if unit.cores_used < 1:
            yield (f"unit: {unit.cores_used:.0%} of the cores' time is used while more is wanted "
                   "than there is")  # fmt: skip
    for model in profiles.models:
        if model.served is not None:
            yield f"unit: steps of {model.name} take {_served_text(model.served)}"
    for pair in profiles.pairs:
        one, other = pair.sides
        slow, slower = pair.slowdowns
        yield (f"pair {one.model} {one.phase} + {other.model} {other.phase}: x{slow:.2f} and "
               f"x{slower:.2f} beside each other")  # fmt: skip
    yield from _fit_lines(profiles)
    if profiles.made.load > profiles.made.cores / 2:
        yield (f"measured beside others: load {profiles.made.load:g} on {profiles.made.cores} "
               "cores; measure again on a quiet machine")  # fmt: skip
    for left in profiles.left_out:
        yield f"left out: {left}"


def _served_text(served: Served) -> str:
    decodes = ", ".join(f"x{times:.2f} (decode of {batch:.0f})" for batch, times in served.decode)
    prefill = served.prefill
    return (f"{decodes}, x{prefill.times:.2f} + {prefill.longer_s * 1e3:.2f} ms (prefill) of their "
            "time on the bench")  # fmt: skip


def _fit_lines(profiles: ProfileSet) -> Iterator[str]:
    """The device as the fit sees it at full share, and how far it is off where it did not look."""
    fit = fit_device([profiles])
    full = max(percent for _, percent in fit.rates)
    found = [
        f"{name} {rate * scale:,.3g} {unit}"
        for phase, part, name, scale, unit in (
            (Phase.PREFILL, "flops", "prefill", 1e-12, "TFLOP/s"),
            (Phase.DECODE, "flops", "decode", 1e-12, "TFLOP/s"),
            (Phase.DECODE, "weights", "weights", 1e-9, "GB/s"),
            (Phase.DECODE, "kv", "KV", 1e-9, "GB/s"),
        )
        if (phase, full) in fit.rates and (rate := fit.rate(phase, full, part)) is not None
    ]
    layer = fit.rate(Phase.DECODE, full, "layers") if (Phase.DECODE, full) in fit.rates else None
    found += [f"{1e3 / layer:.3f} ms per layer of a decode step"] if layer else []
    yield f"fit at {full} %: {', '.join(found)}"
    checked = cross_validate([profiles])
    yield f"fit error, {checked.how} (median, 90 % of steps below):"
    for error in checked.errors:
        yield f"  {error.region}: {error.median:.0%}, {error.p90:.0%} ({error.steps} steps)"


def _model_line(model: ModelProfile, gpu: str) -> str:
    full = model.table.rows(1, 100)
    parts = [f"{model.name}:"]
    prefill = fastest_prefill(model)
    if prefill is not None:
        rate, knee = prefill
        flops = 2 * model.geometry.parameters * rate
        parts.append(f"prefill {rate:,.0f} tokens/s from {knee} tokens on, "
                     f"{flops / 1e12:.3f} TFLOP/s{_of_sheet(flops, gpu, 'flops')};")  # fmt: skip
    moved = bandwidth(model, full)
    if moved:
        parts.append(f"decode moves up to {moved / 1e9:.1f} GB/s"
                     f"{_of_sheet(moved, gpu, 'bandwidth')}, {_batch_knee(full)};")  # fmt: skip
    parts.append(f"grant {model.grant_s * 1e3:.2f} ms, handoff {model.handoff_s * 1e3:.2f} ms, "
                 f"host {format_bytes(model.host_bytes)}")  # fmt: skip
    return " ".join(parts)


def fastest_prefill(model: ModelProfile) -> tuple[float, int] | None:
    """(tokens/s at best, tokens from which on it is near that), at the best share."""
    rows = [row for cell in model.table.cells.values() for row in cell if row.prefill_s]
    if not rows:
        return None
    rates = [
        (row.batch * row.tokens, row.batch * row.tokens / (row.prefill_s or 1)) for row in rows
    ]
    best = max(rate for _, rate in rates)
    return best, min(tokens for tokens, rate in rates if rate * NEAR >= best)


def bandwidth(model: ModelProfile, rows: tuple[StepRow, ...]) -> float:
    """Bytes of weights and KV that decode steps read per second, at most."""
    return max((
        (model.geometry.weight_bytes + row.batch * row.tokens * model.geometry.kv_bytes_per_token)
        / row.decode_s
        for row in rows if row.decode_s
    ), default=0.0)  # fmt: skip


def _batch_knee(rows: tuple[StepRow, ...]) -> str:
    """The batch from which on a step takes twice as long as a single sequence's."""
    shortest = min((row.tokens for row in rows if row.decode_s), default=0)
    curve = sorted((row.batch, row.decode_s) for row in rows
                   if row.decode_s and row.tokens == shortest)  # fmt: skip
    beyond = [batch for batch, seconds in curve if seconds > 2 * curve[0][1]]
    return f"a step doubles at batch {beyond[0]}" if beyond else "no step doubles"


def _of_sheet(value: float, gpu: str, figure: str) -> str:
    if gpu == CPU or gpu not in GPU_TYPES:
        return ""  # the entry of a CPU is an order of magnitude, no data sheet
    return f" ({value / getattr(GPU_TYPES[gpu], figure):.0%} of the data sheet)"


def plot_profiles(profiles: ProfileSet, path: Path) -> None:
    """One row of pictures per model: decode by batch, by context, prefill by tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = len(profiles.models)
    figure, axes = plt.subplots(count, 3, figsize=(13, 3.6 * count), squeeze=False)
    for row, model in zip(axes, profiles.models, strict=True):
        _decode_by_batch(row[0], model)
        _decode_by_context(row[1], model)
        _prefill(row[2], model)
    made = profiles.made
    figure.suptitle(f"{made.device}, {made.path}, release {made.release} {made.commit}, {made.at}",
                    fontsize=9)  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _lines(axes: Any, curves: dict[tuple[int, int], list[tuple[float, float]]], what: str) -> None:
    for (percent, fixed), points in sorted(curves.items()):
        points.sort()
        axes.plot([x for x, _ in points], [y for _, y in points], marker=".",
                  label=f"{percent} %, {what} {fixed}")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize=6)


def _decode_by_batch(axes: Any, model: ModelProfile) -> None:
    curves: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for row in (row for cell in model.table.cells.values() for row in cell if row.decode_s):
        curves.setdefault((row.percent, row.tokens), []).append((row.batch, _ms(row.decode_s)))
    _lines(axes, curves, "context")
    axes.set(title=f"{model.name}: decode step, ms", xlabel="sequences")


def _decode_by_context(axes: Any, model: ModelProfile) -> None:
    curves: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for row in (row for cell in model.table.cells.values() for row in cell if row.decode_s):
        curves.setdefault((row.percent, row.batch), []).append((row.tokens, _ms(row.decode_s)))
    _lines(axes, curves, "batch")
    axes.set(title=f"{model.name}: decode step, ms", xlabel="tokens of context")


def _prefill(axes: Any, model: ModelProfile) -> None:
    curves: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for row in (row for cell in model.table.cells.values() for row in cell if row.prefill_s):
        points = curves.setdefault((row.percent, row.batch), [])
        points.append((row.tokens, row.batch * row.tokens / (row.prefill_s or 1)))
    _lines(axes, curves, "prompts")
    axes.set(title=f"{model.name}: prefill, tokens/s", xlabel="tokens of a prompt")


def _ms(seconds: float | None) -> float:
    return (seconds or 0.0) * 1000
