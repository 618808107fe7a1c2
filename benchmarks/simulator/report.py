"""Tables as they are printed and written: the command above, hardware and versions below."""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from runs import spent

from mux_core.simulator.intervals import Interval

Cell = str | float | int | None


@dataclass(slots=True, kw_only=True)
class Table:
    """Rows under a title; `notes` say what a reader would ask."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *row: Cell) -> None:
        assert len(row) == len(self.columns)
        self.rows.append(row)

    def markdown(self) -> str:
        lines = [f"**{self.title}**", ""]
        lines += [_line(self.columns), "|" + "---|" * len(self.columns)]
        lines += [_line([_shown(cell) for cell in row]) for row in self.rows]
        return "\n".join(lines + [f"\n{note}" for note in self.notes]) + "\n"


def report(args: argparse.Namespace, *tables: Table) -> None:
    """Prints the tables and writes them where the arguments say."""
    text = "\n".join(["```", command(), "```", "", *(t.markdown() for t in tables), provenance()])
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text + "\n", encoding="utf-8")
    if args.json:
        figures = [
            {"title": t.title, "columns": t.columns, "rows": t.rows, "notes": t.notes}
            for t in tables
        ]
        document = {"command": command(), "provenance": provenance(), "tables": figures}
        Path(args.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def command() -> str:
    """The command line of this process, as one would type it in the checkout."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[2]
    return shlex.join(["python", str(script.relative_to(root)), *sys.argv[1:]])


def provenance() -> str:
    rate = spent.events / spent.cpu if spent.cpu else 0.0
    return (
        f"{spent.runs} runs, {spent.cpu:.0f} CPU s, {rate:,.0f} events/s; simulated 4 x 8 "
        f"A100-80GB on one core of {_processor()} ({os.cpu_count()} cores), "
        f"Python {platform.python_version()}, numpy {np.__version__}"
    )


def shown(found: Interval, digits: int = 2) -> str:
    """A figure and half the width of its 95 % interval."""
    if found.low is None or found.high is None:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} ± {(found.high - found.low) / 2:.{digits}f}"


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
