"""Turns a result of row 3 into the planner's profile files, one per model.

    python3 benchmarks/gpu/profile_table.py benchmarks/results/gpu/...-row3-....json --out DIR

Each cell is the median of its repetitions. A result that does not count (made with `--device cpu`)
is refused.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import record  # noqa: F401 (finds our sources)

from mux_core.costmodel.profile_file import dump_table, load_table
from mux_core.costmodel.table import StepRow, step_table

Cell = tuple[int, int, int]


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The text of a profile file by model. Raises SpecError for a table no planner can use."""
    cells: dict[str, dict[Cell, dict[str, float]]] = {}
    for measured in document["measurements"]:
        if measured["what"] in ("prefill", "decode") and "median" in measured:
            p = measured["parameters"]
            cell = (p["percent"], p.get("batch", 1), p.get("context", p.get("tokens")))
            times = cells.setdefault(p["model"], {}).setdefault(cell, {})
            times[f"{measured['what']}_s"] = measured["median"] / 1000
    gpu = document["gpu"]["name"].lower().replace(" ", "-")
    return {model: _table(model, gpu, found) for model, found in cells.items()}


def _table(model: str, gpu: str, cells: dict[Cell, dict[str, float]]) -> str:
    rows = [StepRow(tensor=1, percent=percent, batch=batch, tokens=tokens,
                    prefill_s=times.get("prefill_s"), decode_s=times.get("decode_s"))
            for (percent, batch, tokens), times in sorted(cells.items())]  # fmt: skip
    text = dump_table(step_table(model, gpu, rows))
    load_table(text, subject=f"profile of {model}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the profile files")
    args = parser.parse_args()
    document = json.loads(args.result.read_text())
    if not document["counts"]:
        print(f"{args.result}: made on {document['device']}; only a GPU's figures are of use here",
              file=sys.stderr)  # fmt: skip
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for model, text in tables(document).items():
        file = args.out / f"{model}.profile.json"
        file.write_text(text)
        print(f"written: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
