"""How often measurements alone rewrite a status: every write wakes everyone who watches."""

from dataclasses import replace
from typing import Final

from mux_core.comparison import WINDOW_S
from mux_core.rates import TAU_S, fell, jumped, window
from mux_core.status import Figures, LlmStatus, MeasuredDemand

RATE_EVERY_S: Final = 30.0
"""A status whose measured figures alone changed is not written more often than this."""


def seldom(status: LlmStatus, before: LlmStatus, *, now: float) -> LlmStatus:
    """Keeps what was measured and written while it is young, unless it says something else."""
    demand = _demand(status.demand, before.demand)
    # A figure of another plan is not kept beside what this one predicts.
    kept = before.observed if status.predicted == before.predicted else None
    observed = _observed(status.observed, kept, now=now)
    if status.observed is not None and demand != before.demand:
        observed = status.observed  # it is written anyway
    return replace(status, demand=demand, observed=observed)


def _observed(new: Figures | None, old: Figures | None, *, now: float) -> Figures | None:
    """The written figures while they are young; those of few requests do not come and go."""
    if old is None:
        return new
    lasts = RATE_EVERY_S if new is not None else WINDOW_S
    return old if now - old.as_of < lasts else new


def _demand(new: MeasuredDemand | None, old: MeasuredDemand | None) -> MeasuredDemand | None:
    """The written rate while it is young or the new one worth little, unless it moved."""
    if new is None:
        return None
    shown = MeasuredDemand(rate=round(new.rate, 2), source=new.source, as_of=float(int(new.as_of)),
                           lasting=round(new.rate, 2))  # fmt: skip
    if old is not None and old.source == new.source:
        young = new.as_of - old.as_of < RATE_EVERY_S or window(new.age_s, TAU_S) < TAU_S
        if young and not jumped(new, old.rate) and not fell(new, old.rate):
            shown = old
    return shown
