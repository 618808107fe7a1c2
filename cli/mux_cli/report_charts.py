"""Charts of the report as inline SVG: no library, no script, colours from the page's style sheet.

Every chart carries a title and a description for those who cannot see it. Lines are labelled where
they end, so no colour has to be matched with a legend.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mux_cli.report_svg import COLOURS, Frame, Line, axes, chart, lines, marker, ticks
from mux_cli.simulate_views import UnitView
from mux_core.simulator.record import Column

TIMELINE_S = 2.0
"""Seconds of a unit's steps that are drawn: more would blur into one bar."""
POINTS = 240
"""Points of a line over time at most."""
PHASES = ("prefill", "decode")


def attainment_chart(document: Mapping[str, Any]) -> str:
    """Share of requests within each SLO scale."""
    scales = [int(scale) for scale in document["slo"]]
    drawn = []
    for colour, (name, label) in enumerate(
        (("slo", "all requests"), ("slo_worst", "worst model"), ("slo_e2e", "end to end"))
    ):
        values = [100 * value for value in document[name].values()]
        ends = list(document["intervals"][name].values())
        drawn.append(
            Line(
                label=label, colour=colour, points=list(zip(scales, values, strict=True)),
                band=[(100 * e[0], 100 * e[1]) for e in ends] if all(ends) else (),
            )
        )  # fmt: skip
    frame = Frame(x_range=(scales[0], scales[-1]), y_range=(0, 100), log_x=True)
    said = "; ".join(f"{line.label} {line.points[4][1]:.1f} % at 8 times" for line in drawn)
    return chart(
        "attainment", "Requests within a multiple of the unloaded latency, in percent", said, frame,
        axes(frame, scales, ticks(frame.y_range), x_title="times the unloaded latency (or target)",
              y_unit="%"),
        *lines(frame, drawn),
    )  # fmt: skip


def load_chart(sweep: Sequence[Mapping[str, Any]]) -> str:
    """Goodput against the rate offered, and the diagonal that it leaves when GPUs run out."""
    offered = [point["offered"] for point in sweep]
    served = [(point["offered"], point["goodput"]) for point in sweep]
    highest = max(offered)
    frame = Frame(x_range=(0, highest), y_range=(0, highest * 1.02))
    drawn = [
        Line(label="offered", colour=-1, dashed=True, points=[(0, 0), (highest, highest)]),
        Line(label="served", colour=0, points=[(0, 0), *served]),
    ]
    now = next((point for point in sweep if point["factor"] == 1.0), None)
    here = "" if now is None else marker(frame, now["offered"], "this run")
    said = ", ".join(f"{value:.1f} of {rate:.1f}" for rate, value in served)
    return chart(
        "load", "Requests per second served, by requests per second offered", said, frame,
        axes(frame, ticks(frame.x_range), ticks(frame.y_range), x_title="offered, requests/s"),
        here, *lines(frame, drawn),
    )  # fmt: skip


def over_time_chart(view: UnitView, kind: str) -> str:
    """KV (`kv`) or decode batch (`batch`) of every model in a unit."""
    kv = kind == "kv"
    drawn = [
        Line(
            label=member.model, colour=index,
            points=_thinned(member.kv_samples if kv else member.batch_samples, 100 if kv else 1),
        )
        for index, member in enumerate(view.members)
    ]  # fmt: skip
    values = [value for line in drawn for _, value in line.points]
    times = [at for line in drawn for at, _ in line.points]
    if not values:
        return ""
    frame = Frame(
        height=240.0,
        x_range=(min(times), max(times)),
        y_range=(0, max(max(values) * 1.05, 1.0)),
    )
    title = "KV memory held, percent of the unit's" if kv else "Requests in the decode batch"
    said = ", ".join(
        f"{line.label} up to {max(v for _, v in line.points):.0f}" for line in drawn if line.points
    )
    return chart(
        kind, title, said, frame,
        axes(frame, ticks(frame.x_range), ticks(frame.y_range), x_title="seconds",
              y_unit="%" if kv else ""),
        *lines(frame, drawn, dots=False),
    )  # fmt: skip


def timeline_chart(view: UnitView) -> str:
    """Every step of a unit for two seconds; a row per model and phase."""
    begin = min((span.begin for span in view.spans), default=0.0)
    end = begin + TIMELINE_S
    rows = [(i, member.model, phase) for i, member in enumerate(view.members) for phase in PHASES]
    frame = Frame(height=44 + 26.0 * len(rows), left=150, right=16, top=4, bottom=40,
                  x_range=(begin, end), y_range=(0, 1))  # fmt: skip
    body = [axes(frame, ticks(frame.x_range), [], x_title="seconds")]
    for row, (index, model, phase) in enumerate(rows):
        top = frame.top + 26.0 * row
        found = [s for s in view.spans if (s.model, s.phase) == (model, phase) and s.begin < end]
        boxes = "".join(
            f"M{frame.x(s.begin):.1f} {top + 3:.1f}h{_step_width(frame, s.begin, s.end, end):.1f}"
            "v20H" + f"{frame.x(s.begin):.1f}z"
            for s in found
        )
        body.append(f'<text class="row" x="{frame.left - 10}" y="{top + 17:.1f}">'
                    f"{escape(model)} {phase}</text>")  # fmt: skip
        if boxes:
            body.append(f'<path class="f{index % COLOURS} {phase}" d="{boxes}"><title>'
                        f"{escape(model)}: {len(found)} {phase} steps</title></path>")  # fmt: skip
    said = f"{len([s for s in view.spans if s.begin < end])} steps of {len(view.members)} models"
    return chart("timeline", f"Steps of unit {view.unit}", said, frame, *body)


def _step_width(frame: Frame, begin: float, end: float, last: float) -> float:
    return max(0.6, frame.x(min(end, last)) - frame.x(begin) - 0.4)


def placement_chart(units: Sequence[Mapping[str, Any]]) -> str:
    """Which models share which GPUs; a segment is as wide as its share of compute."""
    row = 30.0
    frame = Frame(height=row * len(units) + 8, left=150, right=16, top=4, bottom=4,
                  x_range=(0, 100), y_range=(0, 1))  # fmt: skip
    body = []
    for index, unit in enumerate(units):
        top = frame.top + row * index
        body.append(f'<text class="row" x="{frame.left - 10}" y="{top + 19:.1f}">'
                    f"{escape(_gpus(unit))}</text>")  # fmt: skip
        body += _segments(frame, unit["members"], top)
    said = "; ".join(
        f"{_gpus(unit)}: {', '.join(m['model'] for m in unit['members'])}" for unit in units
    )
    return chart("placement", "Models and the GPUs they share", said, frame, *body)


def _gpus(unit: Mapping[str, Any]) -> str:
    gpus = [str(gpu) for gpu in unit["gpus"]]
    return f"{unit['node']} GPU {gpus[0] if len(gpus) == 1 else f'{gpus[0]}–{gpus[-1]}'}"


def _segments(frame: Frame, members: Sequence[Mapping[str, Any]], top: float) -> Iterable[str]:
    whole = max(100, sum(member["decode_percent"] for member in members))
    at = 0.0
    for index, member in enumerate(members):
        share = member["decode_percent"] / whole * 100
        x, wide = frame.x(at), frame.x(at + share) - frame.x(at)
        at += share
        tint = "f0" if index % 2 == 0 else "f0 second"
        name = escape(member["model"])
        yield (
            f"<g><title>{name}: {member['decode_percent']} % of the SMs, "
            f'{member["rate"]:.2f} requests/s</title><rect class="{tint}" x="{x:.1f}" '
            f'y="{top + 2:.1f}" width="{max(1.0, wide - 2):.1f}" height="26" rx="3"/>'
        )
        if wide > 7 * len(member["model"]) + 10:
            yield f'<text class="inside" x="{x + 8:.1f}" y="{top + 19:.1f}">{name}</text>'
        yield "</g>"


def _thinned(samples: Column, factor: float) -> list[tuple[float, float]]:
    step = max(1, len(samples) // POINTS)
    return [(float(at), float(value) * factor) for at, value in samples[::step]]
