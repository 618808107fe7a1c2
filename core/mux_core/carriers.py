"""Which pod or process tree carries a unit now, and what it can read."""

from mux_core.snapshot import Carrier, CarrierState, LlmObject, Observation
from mux_core.units import ModelName, UnitId


def live_carrier(seen: Observation, unit: UnitId) -> Carrier | None:
    """The carrier of the unit's written incarnation, unless it is dead."""
    record = next((r for r in seen.units if r.unit == unit), None)
    if record is None:
        return None
    return next(
        (c for c in seen.carriers
         if c.unit == unit and c.incarnation == record.spec.incarnation
         and c.state is not CarrierState.DEAD),
        None,
    )  # fmt: skip


def unmounted_claim(seen: Observation, unit: UnitId, item: LlmObject) -> str:
    """The claim a running unit would need for the model and cannot read; empty when all is well."""
    claim = item.spec.source.claim if item.spec is not None else None
    carrier = live_carrier(seen, unit)
    if claim is None or carrier is None or carrier.claims is None or claim in carrier.claims:
        return ""
    return claim


def out_of_reach(seen: Observation) -> frozenset[tuple[ModelName, UnitId]]:
    """Models that cannot join a unit as it runs: its pod was started without their claim."""
    return frozenset(
        (item.name, record.unit)
        for record in seen.units
        for item in seen.members
        if record.spec.member(item.name) is None and unmounted_claim(seen, record.unit, item)
    )
