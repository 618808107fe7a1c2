"""Step times as a unit's members see them: the engine's, and what the unit adds to each step.

Scheduler, front and client work between two steps of a host; on a CPU they do it on the engine's
cores. Added to the step they are charged to whoever causes them, and a reader that knows only
tables (estimator, simulator) needs to know nothing more.
"""

from dataclasses import replace

from mux_core.costmodel.profile_set import Served, UnitCost
from mux_core.costmodel.table import StepRow, StepTable, step_table


def seen_table(
    table: StepTable, unit: UnitCost, served: Served, *, grant_s: float = 0.0
) -> StepTable:  # fmt: skip
    """Every step as long as `served` says, and longer by what the unit adds; `grant_s` is what a
    bare grant already costs."""
    rows = (_seen(row, unit, served, grant_s) for cell in table.cells.values() for row in cell)
    return step_table(table.model, table.gpu, rows)


def _seen(row: StepRow, unit: UnitCost, served: Served, grant_s: float) -> StepRow:
    added = max(grant_s, unit.step_s) + row.batch * unit.token_s
    times = served.decode_times(row.batch)
    return replace(
        row,
        prefill_s=None if row.prefill_s is None else served.prefill.of(row.prefill_s) + added,
        decode_s=None if row.decode_s is None else row.decode_s * times + added,
    )
