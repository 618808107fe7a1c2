"""Simulated runs as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_run(document: Mapping[str, Any], console: Console) -> None:
    """Headline, attainment, models, and what to know before believing them."""
    console.print(headline(document), highlight=False)
    console.print(_attainment(document))
    console.print(_models(document))
    if document["moves"]:
        console.print(_moves(document["moves"]))
    if "check" in document:
        console.print(_check(document["check"]))
    for warning in warnings(document):
        console.print(warning, style="bold", highlight=False)
    for note in document["notes"]:
        console.print(f"note: {note}", highlight=False)
    console.print(f"{document['events']:,} events in {document['seconds']:.1f} s", highlight=False)


def headline(document: Mapping[str, Any]) -> str:
    """One sentence that says how it went."""
    window = document["window"]
    return (
        f"{document['strategy']} with {document['policy']}: "
        f"{_with_interval(document, 'goodput')} of {document['offered']:.2f} requests/s on "
        f"{document['gpus_used']:.4g} GPUs, worst ratio {_with_interval(document, 'worst_ratio')}\n"
        f"{window['seconds']:g} s after a warm-up of {window['warmup']:g} s, "
        f"{_seeds(document)}, 95 % intervals"
    )


def _seeds(document: Mapping[str, Any]) -> str:
    return "1 seed" if document["seeds"] == 1 else f"{document['seeds']} seeds"


def warnings(document: Mapping[str, Any]) -> list[str]:
    """What keeps the figures from meaning what they usually mean."""
    found = []
    if document["interrupted"]:
        found.append("interrupted: the figures are of what had been simulated by then")
    if document["growing"]:
        found.append(
            f"no steady state: the queues of {', '.join(document['growing'])} still grew at the "
            "window's end, so their latencies are of this window only; the rates are too high or "
            "--warmup is too short"
        )
    return found


def _with_interval(document: Mapping[str, Any], name: str) -> str:
    return f"{document[name]:.3f}{_around(document[name], document['intervals'][name])}"


def _around(value: float, ends: list[float] | None) -> str:
    return "" if ends is None else f" ({ends[0]:.3f} to {ends[1]:.3f})"


def _attainment(document: Mapping[str, Any]) -> Table:
    table = Table(title="SLO attainment, %")
    table.add_column("scale")
    for scale in document["slo"]:
        table.add_column(scale, justify="right")
    rows = (("all requests", "slo"), ("worst LLM", "slo_worst"), ("end to end", "slo_e2e"))
    for label, name in rows:
        table.add_row(label, *(f"{100 * value:.1f}" for value in document[name].values()))
    return table


def _models(document: Mapping[str, Any]) -> Table:
    table = Table(title="models")
    for column in ("model", "offered/s", "served/s", "ratio", "TTFT ms", "p50", "p99", "TPOT ms",
                   "p50", "p99", "KV %", "max"):  # fmt: skip
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, model in document["models"].items():
        table.add_row(
            name if model["steady"] else f"{name} (queue grows)",
            f"{model['offered']:.3f}",
            f"{model['served']:.3f}",
            f"{model['ratio']:.3f}",
            *(_shown(model["ttft_ms"][key]) for key in ("mean", "p50", "p99")),
            *(_shown(model["tpot_ms"][key]) for key in ("mean", "p50", "p99")),
            f"{100 * model['kv']['mean']:.1f}",
            f"{100 * model['kv']['max']:.1f}",
        )
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _moves(moves: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="what moved (first seed)")
    for column in MOVE_COLUMNS:
        table.add_column(column)
    for row in move_rows(moves):
        table.add_row(*row)
    return table


MOVE_COLUMNS = ("at", "GPUs", "step", "unit", "model", "reason", "ready after", "not served for")


def move_rows(moves: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row per step of every plan that was taken up; times in s."""
    return [
        [
            f"{move['at']:.0f}",
            str(move["gpus_used"]),
            *(str(step.get(key) or "") for key in ("kind", "unit", "model", "reason")),
            *(_seconds(step.get(key)) for key in ("ready_s", "unserved_s")),
        ]
        for move in moves
        for step in move["steps"]
    ]


def _seconds(value: float | None) -> str:
    return "" if not value else f"{value:.1f} s"


def _check(check: Mapping[str, Any]) -> Table:
    table = Table(title="Little's law" if check["holds"] else "Little's law DOES NOT HOLD")
    for column in ("model", "present", "arrivals/s x stay", "holds", "counted", "logged"):
        table.add_column(column, justify="left" if column == "model" else "right")
    says = {True: "yes", False: "NO", None: "queue grows"}
    for name, found in check["little"].items():
        figures = (f"{found[key]:.3f}" for key in ("counted", "logged"))
        table.add_row(
            name,
            f"{found['present']:.3f}",
            f"{found['rate_times_stay']:.3f}",
            says[found["holds"]],
            *figures,
        )
    return table


def print_comparison(document: Mapping[str, Any], console: Console) -> None:
    """A row per system, then paired differences from the first."""
    console.print(_systems(document))
    console.print(_differences(document))
    for system in document["systems"]:
        for warning in warnings(system["result"]):
            console.print(f"{system['label']}: {warning}", highlight=False)
        for note in system["result"]["notes"]:
            console.print(f"{system['label']}: {note}", highlight=False)
    console.print(f"{document['seconds']:.1f} s", highlight=False)


def _systems(document: Mapping[str, Any]) -> Table:
    scales = list(document["systems"][0]["result"]["slo"])
    table = Table(title=f"{_seeds(document)}; attainment in %, SLO scale above")
    for column in ("system", "goodput/s", "worst ratio", "GPUs", *scales, "worst TTFT ms"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for system in document["systems"]:
        result = system["result"]
        means = [m["ttft_ms"]["mean"] for m in result["models"].values()]
        table.add_row(
            system["label"],
            f"{result['goodput']:.2f}",
            f"{result['worst_ratio']:.3f}",
            f"{result['gpus_used']:.4g}",
            *(f"{100 * value:.1f}" for value in result["slo"].values()),
            _shown(max((mean for mean in means if mean is not None), default=None)),
        )
    return table


def _differences(document: Mapping[str, Any]) -> Table:
    table = Table(title=f"minus {document['baseline']}, paired by seed, 95 % intervals")
    columns = ("system", "goodput/s", "worst ratio", "SLO 2", "SLO 5", "SLO 8", "SLO 20")
    for column in columns:
        table.add_column(column, justify="left" if column == "system" else "right")
    for label, found in document["differences"].items():
        shares = (found["slo"][scale] for scale in ("2", "5", "8", "20"))
        table.add_row(label, *map(_difference, (found["goodput"], found["worst_ratio"], *shares)))
    return table


def _difference(found: Mapping[str, Any]) -> str:
    ends = found["interval"]
    half = "" if ends is None else f" ±{(ends[1] - ends[0]) / 2:.3f}"
    return f"{found['value']:+.3f}{half}"
