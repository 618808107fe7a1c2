"""A comparison as a table for people and as an object for scripts."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mux_cli.validate_figures import Comparison, Figures, relative_error
from mux_cli.validate_models import Stage

ROWS: Final[tuple[tuple[str, float, Callable[[Figures], float | None]], ...]] = (
    ("goodput /s", 1, lambda f: f.goodput),
    ("TTFT mean ms", 1e3, lambda f: f.ttft.mean),
    ("TTFT p50 ms", 1e3, lambda f: f.ttft.p50),
    ("TTFT p99 ms", 1e3, lambda f: f.ttft.p99),
    ("TPOT mean ms", 1e3, lambda f: f.tpot.mean),
    ("TPOT p50 ms", 1e3, lambda f: f.tpot.p50),
    ("TPOT p99 ms", 1e3, lambda f: f.tpot.p99),
    ("KV used %", 1e2, lambda f: f.kv),
)
"""Name, factor for printing, and the figure."""


def print_comparison(found: Comparison, stage: Stage, console: Console) -> None:
    """One table per model: predicted, simulated, observed, and the errors of the first two."""
    console.print(_heading(found), highlight=False)
    table = Table()
    for column in ("model", "figure", "predicted", "error", "simulated", "error", "observed"):
        table.add_column(column, justify="left" if column in ("model", "figure") else "right")
    for model, seen in found.observed.items():
        said, played = found.predicted.get(model), found.simulated.get(model)
        label = f"{model} ({stage.sources[model]} costs, {seen.requests} requests)"
        for index, (name, factor, figure) in enumerate(ROWS):
            cells = _cells(said, played, seen, factor, figure)
            table.add_row(
                label if index == 0 else "", name, *cells, end_section=name == ROWS[-1][0]
            )
        if seen.unfinished:
            table.add_row("", f"{seen.unfinished} unfinished")
    console.print(table)


def _heading(found: Comparison) -> str:
    offered = sum(figures.offered for figures in found.observed.values())
    slower = ""
    if found.slower is not None:
        slower = (f"; costs are the profile's times {found.slower:.2f}, as a fixed piece of work "
                  "took that many times as long")  # fmt: skip
    return (f"load {found.load:.3f} of the rates, seed {found.seed}: {offered:.2f} requests/s; "
            "client and units on the same cores, load average "
            f"{found.load_average:.1f}{slower}")  # fmt: skip


def _cells(
    said: Figures | None, played: Figures | None, seen: Figures, factor: float,
    figure: Callable[[Figures], float | None],
) -> Iterator[str]:  # fmt: skip
    observed = figure(seen)
    for other in (said, played):
        value = None if other is None else figure(other)
        yield _shown(value, factor)
        error = relative_error(value, observed)
        yield "-" if error is None else f"{error:+.0%}"
    yield _shown(observed, factor)


def _shown(value: float | None, factor: float) -> str:
    return "-" if value is None else f"{value * factor:.2f}"


def comparison_document(found: Comparison, stage: Stage) -> dict[str, Any]:
    """What `-o json` prints, a line per run."""
    return {
        "load": found.load, "seed": found.seed, "load_average": found.load_average,
        "slower": found.slower,
        "client": "on the same cores",
        "models": {
            model: {"costs": str(stage.sources[model]), "observed": asdict(seen),
                    "predicted": _document(found.predicted.get(model)),
                    "simulated": _document(found.simulated.get(model))}
            for model, seen in found.observed.items()
        },
    }  # fmt: skip


def _document(found: Figures | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)
