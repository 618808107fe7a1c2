"""Gross outliers of a measured table replaced; the exact replay keeps the raw values.

The rule: a decode step that takes longer than `GROSS` times the step of the next larger batch was
disturbed while it was measured, and is replaced by that step.
"""

from dataclasses import replace
from itertools import pairwise

from mux_core.costmodel.table import StepRow, StepTable, step_table

GROSS = 1.2


def smooth(table: StepTable) -> StepTable:
    """A table in which no decode step grossly exceeds that of the next larger batch."""
    rows: list[StepRow] = []
    for found in table.cells.values():
        rows.extend(_smooth_cell(found))
    return step_table(table.model, table.gpu, rows)


def _smooth_cell(rows: tuple[StepRow, ...]) -> list[StepRow]:
    known = {(row.batch, row.tokens): row for row in rows if row.decode_s is not None}
    batches = sorted({batch for batch, _ in known})
    larger = dict(pairwise(batches))
    # From the largest batch down, so that a replaced value is itself a sound ceiling.
    for batch, tokens in sorted(known, reverse=True):
        row = known[batch, tokens]
        beyond = known.get((larger.get(batch, 0), tokens))
        ceiling = beyond.decode_s if beyond else None
        if row.decode_s and ceiling and row.decode_s > GROSS * ceiling:
            known[batch, tokens] = replace(row, decode_s=ceiling)
    return [row if row.decode_s is None else known[row.batch, row.tokens] for row in rows]
