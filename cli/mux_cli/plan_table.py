"""A plan as tables for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_plan(document: Mapping[str, Any], console: Console) -> None:
    """Headline, models, units, what was rejected, moves and the frontier."""
    console.print(_headline(document), highlight=False)
    console.print(_models(document))
    console.print(_units(document))
    for found in document["unplaced"]:
        console.print(f"not placed: {found['model']} ({found['reason']}): {found['message']}")
    for found in document["alternatives"]:
        console.print(
            f"rejected: {found['summary']} ({found['rejected_because']}) {found['message']}"
        )
    for note in document["notes"]:
        console.print(f"note: {note}")
    if document["moves"] and document["from_current"]:
        console.print(_moves(document))
    for point in document.get("frontier", []):
        console.print(
            f"floor {point['floor']:.2f}: goodput {point['goodput']:.2f}, worst "
            f"ratio {point['worst_ratio']:.3f}, {point['gpus_used']} GPUs"
        )


def _headline(document: Mapping[str, Any]) -> str:
    offered = sum(model["offered"] for model in document["models"].values())
    lines = [
        f"{document['strategy']} (estimator {document['estimator']}): "
        f"{document['gpus_used']} of {document['gpus_total']} GPUs, "
        f"{document['goodput']:.2f} of {offered:.2f} requests/s, "
        f"worst ratio {document['worst_ratio']:.3f}, score {document['score']:.4f}"
    ]
    bound = document["bound"]
    if bound is not None:
        lines.append(
            f"bound: at least {bound['gpus']} GPUs, at most {bound['goodput']:.2f} requests/s; "
            f"gap {bound['gap']:.1%}"
        )
    ended = "stopped at its deadline" if document["deadline_hit"] else "finished"
    lines.append(f"search {ended} after {document['seconds']:.2f} s")
    held = {key: value for key, value in document["constraints"].items() if value is not None}
    lines.append("held: " + ", ".join(f"{key} {value}" for key, value in held.items()))
    return "\n".join(lines)


def _models(document: Mapping[str, Any]) -> Table:
    table = Table(title="models")
    for column in ("model", "offered/s", "served/s", "ratio", "replicas", "TTFT ms", "p99",
                   "TPOT ms", "p99", "costs"):  # fmt: skip
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, model in document["models"].items():
        table.add_row(
            name,
            f"{model['offered']:.3f}",
            f"{model['served']:.3f}",
            f"{model['ratio']:.3f}",
            str(model["replicas"]),
            *(_shown(model[key]) for key in ("ttft_ms", "ttft_p99_ms", "tpot_ms", "tpot_p99_ms")),
            model.get("costs") or "-",
        )
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _units(document: Mapping[str, Any]) -> Table:
    table = Table(title="units")
    for column in ("unit", "node", "GPUs", "members (rate/s, decode %, KV GiB)"):
        table.add_column(column)
    for unit in document["units"]:
        members = ", ".join(
            f"{member['model']}#{member['replica']} ({member['rate']:.2f}, "
            f"{member['decode_percent']}%, {member['kv_bytes'] / 2**30:.1f})"
            for member in unit["members"]
        )
        gpus = ",".join(str(gpu) for gpu in unit["gpus"])
        table.add_row(unit["id"], unit["node"], gpus, members)
    return table


def _moves(document: Mapping[str, Any]) -> Table:
    table = Table(title="steps from the current placement")
    for column in ("step", "unit", "model", "from", "reason", "disruptive"):
        table.add_column(column)
    for move in document["moves"]:
        table.add_row(
            move["kind"],
            move["unit"],
            move["model"] or "",
            move["from"] or "",
            move["reason"],
            "yes" if move["disruptive"] else "",
        )
    return table
