"""The file in which measured step times travel: written by `muxserve profile`, read here.

JSON, version 1:

    {"format": "muxserve-profile", "version": 1, "model": "qwen3-4b", "gpu": "h100-80gb",
     "rows": [{"tensor": 1, "percent": 100, "batch": 8, "tokens": 256,
               "prefill_ms": 41.2, "decode_ms": 11.7}, ...]}

A phase that was not measured is left out or null. `percent` is the SM share in force.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from mux_core.costmodel.table import StepRow, StepTable, step_table
from mux_core.errors import SpecError

FORMAT: Final = "muxserve-profile"
VERSION: Final = 1
MOST_ROWS: Final = 1_000_000


def dump_table(table: StepTable) -> str:
    """The text of a profile file."""
    rows = [
        {
            "tensor": row.tensor,
            "percent": row.percent,
            "batch": row.batch,
            "tokens": row.tokens,
            "prefill_ms": None if row.prefill_s is None else row.prefill_s * 1000,
            "decode_ms": None if row.decode_s is None else row.decode_s * 1000,
        }
        for found in table.cells.values()
        for row in found
    ]
    document = {"format": FORMAT, "version": VERSION, "model": table.model, "gpu": table.gpu,
                "rows": rows}  # fmt: skip
    return json.dumps(document, indent=1) + "\n"


def load_table(text: str, *, subject: str) -> StepTable:
    """The table of a profile file. Raises SpecError naming `subject`, the value and the fix."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{subject}: is not JSON ({error}); write it anew with muxserve profile"
                        ) from error  # fmt: skip
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SpecError(f"{subject}: is no profile; its format must be {FORMAT!r}")
    if document.get("version") != VERSION:
        raise SpecError(f"{subject}: version {document.get('version')!r}; this release reads "
                        f"version {VERSION}; write it anew with muxserve profile")  # fmt: skip
    rows = document.get("rows")
    if not isinstance(rows, list) or not rows or len(rows) > MOST_ROWS:
        raise SpecError(f"{subject}: rows must be a list of 1 to {MOST_ROWS} measurements")
    found = [_row(row, f"{subject}: rows[{index}]") for index, row in enumerate(rows)]
    table = step_table(str(document.get("model", "")), str(document.get("gpu", "")), found)
    for tensor in table.tensors:
        if 100 not in table.percents(tensor):
            raise SpecError(f"{subject}: tensor {tensor} was not measured at 100% of the SMs; "
                            "measure that share too")  # fmt: skip
    return table


def _row(row: object, subject: str) -> StepRow:
    if not isinstance(row, dict):
        raise SpecError(f"{subject}: {row!r}; an object is needed")
    percent = _whole(row, "percent", subject)
    if percent > 100:
        raise SpecError(f"{subject}: percent {percent}; 1 to 100")
    return StepRow(
        tensor=_whole(row, "tensor", subject),
        percent=percent,
        batch=_whole(row, "batch", subject),
        tokens=_whole(row, "tokens", subject),
        prefill_s=_seconds(row, "prefill_ms", subject),
        decode_s=_seconds(row, "decode_ms", subject),
    )


def _whole(row: Mapping[str, Any], key: str, subject: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{subject}: {key} {value!r}; a whole number of at least 1")
    return value


def _seconds(row: Mapping[str, Any], key: str, subject: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise SpecError(f"{subject}: {key} {value!r}; milliseconds above 0")
    return value / 1000
