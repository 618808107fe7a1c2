"""Pictures of simulated runs: goodput against load, attainment, memory and time of a unit."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mux_cli.simulate_views import UnitView

PHASE_ALPHA = {"prefill": 1.0, "decode": 0.55}


def plot_run(document: Mapping[str, Any], view: UnitView | None, folder: Path) -> list[Path]:
    """Writes the pictures into a folder; their paths. Leaves out what was not simulated."""
    import matplotlib

    matplotlib.use("Agg")
    drawn: list[tuple[str, Callable[[Any], None]]] = [
        ("attainment.png", lambda axes: _attainment(document, axes)),
    ]
    if document.get("sweep"):
        drawn.append(("goodput.png", lambda axes: _goodput(document["sweep"], axes)))
    if view is not None:
        drawn.append(("timeline.png", lambda axes: _timeline(view, axes)))
        drawn.append(("kv.png", lambda axes: _over_time(view, axes, "kv_samples")))
        drawn.append(("batch.png", lambda axes: _over_time(view, axes, "batch_samples")))
    return [_draw(folder / name, draw) for name, draw in drawn]


def _draw(path: Path, draw: Callable[[Any], None]) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.0, 4.5))
    draw(axes)
    axes.grid(True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _attainment(document: Mapping[str, Any], axes: Any) -> None:
    scales = [int(scale) for scale in document["slo"]]
    for name, label in (("slo", "all requests"), ("slo_worst", "worst LLM"),
                        ("slo_e2e", "end to end")):  # fmt: skip
        axes.plot(scales, [100 * v for v in document[name].values()], marker="o", label=label)
        ends = document["intervals"][name]
        if all(ends.values()):
            low, high = zip(*ends.values(), strict=True)
            axes.fill_between(scales, [100 * v for v in low], [100 * v for v in high], alpha=0.15)
    axes.set_xscale("log")
    axes.set_xticks(scales, [str(scale) for scale in scales])
    axes.minorticks_off()
    axes.set_xlabel("SLO scale: multiple of the latency alone, or of the LLM's target")
    axes.set_ylabel("requests that meet it, %")
    axes.set_ylim(0, 102)
    axes.legend()


def _goodput(sweep: Sequence[Mapping[str, Any]], axes: Any) -> None:
    offered = [point["offered"] for point in sweep]
    axes.plot(offered, offered, color="#999999", linestyle="--", label="offered")
    axes.plot(offered, [point["goodput"] for point in sweep], marker="o", label="served")
    axes.set_xlabel("requests/s offered")
    axes.set_ylabel("capped goodput, requests/s")
    axes.set_ylim(bottom=0)
    axes.legend()


def _timeline(view: UnitView, axes: Any) -> None:
    rows = [(member.model, phase) for member in view.members for phase in PHASE_ALPHA]
    colours = _colours(view)
    for row, (model, phase) in enumerate(rows):
        found = [s for s in view.spans if (s.model, s.phase) == (model, phase)]
        axes.broken_barh([(s.begin, s.end - s.begin) for s in found], (row - 0.4, 0.8),
                         color=colours[model], alpha=PHASE_ALPHA[phase])  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{model} {phase}" for model, phase in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("s")
    axes.set_title(f"steps of unit {view.unit} ({view.group.size} GPUs)")


def _over_time(view: UnitView, axes: Any, name: str) -> None:
    colours = _colours(view)
    kv = name == "kv_samples"
    for member in view.members:
        samples = getattr(member, name)
        axes.plot(samples[:, 0], samples[:, 1] * (100 if kv else 1), color=colours[member.model],
                  label=member.model)  # fmt: skip
    axes.set_xlabel("s")
    axes.set_ylabel("part of the unit's KV, %" if kv else "requests in the decode batch")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)


def _colours(view: UnitView) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = colormaps["tab10"]
    return {member.model: palette(index % 10) for index, member in enumerate(view.members)}
