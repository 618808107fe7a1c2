"""The report of simulated runs: one HTML file that explains itself to who decides about GPUs.

It loads nothing: style and charts are inside, there is no script, and its own policy forbids any
request. The same runs give the same bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from mux_cli.report_charts import (
    attainment_chart,
    load_chart,
    over_time_chart,
    placement_chart,
    timeline_chart,
)
from mux_cli.simulate_table import MOVE_COLUMNS, move_rows
from mux_cli.simulate_views import UnitView

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
Cell = str | tuple[float, bool]
"""Text, or a ratio as a bar and whether that is low."""
HEADLINE_SCALE = "8"
"""The scale MuxServe's own comparison is read at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the page tells. `units` as a plan prints them. `whole_gpus`: GPUs without sharing.

    `assumptions`: sentences. `command` makes the page again; `version` is ours.
    """

    document: Mapping[str, Any]
    units: Sequence[Mapping[str, Any]]
    view: UnitView | None
    whole_gpus: int | None
    assumptions: Sequence[str]
    command: str
    version: str


def report_page(report: Report) -> str:
    """The whole page."""
    title = f"Capacity report: {len(report.document['models'])} models on " + _gpus(report)
    style = (files("mux_cli") / "report.css").read_text(encoding="utf-8")
    sections = "\n".join(part for part in _sections(report) if part)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
{_verdict(report.document)}
</header>
{_cards(report)}
{sections}
<footer>Simulated with muxserve {escape(report.version)}: {report.document["events"]:,} events.
Nothing on this page was measured on GPUs.</footer>
</main>
</body>
</html>
"""


def _gpus(report: Report) -> str:
    count = report.document["gpus_used"]
    return f"{count:.4g} GPU{'' if count == 1 else 's'}"


def _verdict(document: Mapping[str, Any]) -> str:
    """What came out, in a sentence or two, the bad news first."""
    names = ", ".join(escape(name) for name in document["growing"])
    served = (f"{document['goodput']:.2f} of {document['offered']:.2f} requests per second are "
              "served")  # fmt: skip
    behind = ", ".join(
        f"{escape(name)} ({model['ratio']:.0%})"
        for name, model in document["models"].items()
        if model["left_behind"]
    )
    lines = []
    if document["interrupted"]:
        lines.append(("bad", "Interrupted: the figures are of what had been simulated by then."))
    if names:
        lines.append(("bad", f"Not enough: {served}, and the queues of {names} still grew at the "
                      "end. Their latencies below are of this window only."))  # fmt: skip
    elif not behind:
        lines.append(("good", f"Enough: {served}, and no model is left behind."))
    else:
        lines.append(("bad", f"Not enough: {served}; {behind} are left behind."))
    return "\n".join(f'<p class="verdict {kind}">{text}</p>' for kind, text in lines)


def _cards(report: Report) -> str:
    document = report.document
    worst = min(document["models"], key=lambda name: document["models"][name]["ratio"])
    whole = report.whole_gpus
    saved = "" if whole is None else f"{whole} with whole GPUs for every model"
    cards = (
        (_plain(document["gpus_used"]), "GPUs", saved),
        (f"{document['goodput']:.2f}/s", "requests served",
         f"of {document['offered']:.2f}/s offered{_between(document, 'goodput', '{:.2f}')}"),
        (f"{document['worst_ratio']:.1%}", "served, worst model",
         worst + _between(document, "worst_ratio", "{:.1%}")
         + ("" if document["models"][worst]["left_behind"] else "; within chance")),
        (f"{document['slo'][HEADLINE_SCALE]:.1%}",
         f"within {HEADLINE_SCALE} x the unloaded latency",
         f"worst model {document['slo_worst'][HEADLINE_SCALE]:.1%}"),
    )  # fmt: skip
    items = "\n".join(
        f'<li><span class="figure">{escape(figure)}</span><span class="what">{escape(what)}</span>'
        f'<span class="soft">{escape(more)}</span></li>'
        for figure, what, more in cards
    )
    return f'<ul class="cards">\n{items}\n</ul>'


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _between(document: Mapping[str, Any], name: str, shape: str) -> str:
    ends = document["intervals"][name]
    if ends is None:
        return ""
    return f"; {shape.format(ends[0])} to {shape.format(ends[1])} with 95 % confidence"


def _sections(report: Report) -> Iterable[str]:
    document, view = report.document, report.view
    yield _section(
        "How fast",
        "Share of requests whose first token and whose token rate both stay within a multiple of "
        "what the model needs alone on its GPUs, or of its own targets where it has some. End to "
        "end judges the whole answer instead. Shaded: 95 % confidence.",
        attainment_chart(document),
        _attainment_table(document),
    )
    if document.get("sweep"):
        yield _section(
            "How much it can take",
            "The same GPUs and shares under less and more traffic; one short run each.",
            load_chart(document["sweep"]),
        )
    yield _section("Every model", _MODELS_TEXT, _model_table(document))
    yield _section(
        "Who shares which GPUs",
        "Each row is a group of GPUs; a segment is as wide as the model's share of their compute "
        "while it generates. Shares are ceilings: prompts may use more, one model at a time.",
        placement_chart(report.units),
    )
    if view is not None and view.spans:
        yield _section(
            f"Two seconds inside unit {view.unit}",
            f"{view.group.node}, {view.group.size} GPU{'s' if view.group.size > 1 else ''}. Solid: "
            "prompts being read; pale: tokens being generated. Steps side by side share the GPUs.",
            timeline_chart(view),
        )
        yield _section(
            f"Memory and batches in unit {view.unit}",
            "KV memory moves to whoever has requests; the decode batch is how many answers a "
            "model generates at once.",
            _captioned("KV memory held, percent of the unit's", over_time_chart(view, "kv")),
            _captioned("Answers generated at once", over_time_chart(view, "batch")),
        )
    if document["moves"]:
        yield _section("What moved", "Plans taken up while requests were served, in the first run.",
                       _table("", MOVE_COLUMNS, move_rows(document["moves"])))  # fmt: skip
    yield _section("What was assumed", "", _list(report.assumptions))
    yield _section("Make it again", "The same command gives the same page.",
                   f"<pre>{escape(report.command)}</pre>")  # fmt: skip


_MODELS_TEXT = (
    "Rates in requests per second, times in milliseconds. TTFT is the time to the first token, "
    "TPOT the time per token after it."
)


def _captioned(caption: str, chart: str) -> str:
    if not chart:
        return ""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def _section(title: str, text: str, *bodies: str) -> str:
    figures = "\n".join(
        f"<figure>{body}</figure>" if body.startswith("<svg") else body for body in bodies if body
    )
    intro = f'<p class="soft">{escape(text)}</p>\n' if text else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{intro}{figures}\n</section>"


def _attainment_table(document: Mapping[str, Any]) -> str:
    rows = (("all requests", "slo"), ("worst model", "slo_worst"), ("end to end", "slo_e2e"))
    return _table(
        "Percent of requests within each multiple",
        ["", *(f"{scale} x" for scale in document["slo"])],
        [[label, *(f"{100 * v:.1f}" for v in document[name].values())] for label, name in rows],
    )


def _model_table(document: Mapping[str, Any]) -> str:
    header = ["model", "offered", "served", "", "TTFT p50", "p99", "TPOT p50", "p99",
              f"within {HEADLINE_SCALE} x", "KV mean"]  # fmt: skip
    rows = []
    for name, model in document["models"].items():
        rows.append([
            name if model["steady"] else f"{name} (queue grows)",
            f"{model['offered']:.3f}",
            f"{model['served']:.3f}",
            (model["ratio"], model["left_behind"]),
            *(_shown(model["ttft_ms"][key]) for key in ("p50", "p99")),
            *(_shown(model["tpot_ms"][key]) for key in ("p50", "p99")),
            f"{model['slo'][HEADLINE_SCALE]:.1%}",
            f"{model['kv']['mean']:.1%}",
        ])  # fmt: skip
    return _table("", header, rows)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    label = escape(caption or "Figures by model")
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(str(row[0]))}</th>{"".join(map(_cell, row[1:]))}</tr>'
        for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{label}">\n<table>{named}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n</div>"
    )


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    ratio, low = value
    return (f'<td>{ratio:.0%}<span class="bar{" low" if low else ""}" aria-hidden="true">'
            f'<i style="width:{100 * ratio:.0f}%"></i></span></td>')  # fmt: skip


def _list(sentences: Sequence[str]) -> str:
    return '<ul class="plain">' + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>"
