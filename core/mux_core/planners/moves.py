"""The steps from one placement to another, each with its reason."""

from collections.abc import Iterator

from mux_core.placement import Member, Placement, Unit
from mux_core.planning import PlanReason, PlanStep, StepKind
from mux_core.units import ModelName, UnitId

MOVE_UNAVAILABLE_S = 0.0
"""A move starts the new engine before it stops the old one; without a spare GPU the shell holds."""


def steps_between(
    current: Placement, proposed: Placement, *, reason: PlanReason
) -> tuple[PlanStep, ...]:
    """What changes: units and engines that appear, then shares and KV, then what goes."""
    sources = _sources(current, proposed)
    steps: list[PlanStep] = []
    for unit in proposed.units:
        before = current.unit(unit.id)
        if before is None:
            steps.append(_step(StepKind.CREATE_UNIT, PlanReason.FITS_FREE, unit.id))
        steps.extend(_engine_steps(before, unit, sources, reason))
    for unit in current.units:
        after = proposed.unit(unit.id)
        gone = [m for m in unit.members if after is None or m.model not in after.models]
        for member in gone:
            if (unit.id, member.model) not in sources.values():
                steps.append(
                    _step(StepKind.STOP_ENGINE, reason, unit.id, member.model, disruptive=True)
                )
        if after is None:
            steps.append(_step(StepKind.DELETE_UNIT, reason, unit.id))
    return tuple(steps)


def _sources(
    current: Placement, proposed: Placement
) -> dict[tuple[UnitId, ModelName], tuple[UnitId, ModelName]]:
    """(new unit, LLM) -> (old unit, LLM) for replicas that leave one unit and appear in another."""
    before = {(unit.id, member.model) for unit, member in current.members()}
    after = {(unit.id, member.model) for unit, member in proposed.members()}
    leaving: dict[ModelName, list[UnitId]] = {}
    for unit_id, model in sorted(before - after):
        leaving.setdefault(model, []).append(unit_id)
    sources = {}
    for unit_id, model in sorted(after - before):
        if leaving.get(model):
            sources[unit_id, model] = (leaving[model].pop(0), model)
    return sources


def _engine_steps(
    before: Unit | None,
    unit: Unit,
    sources: dict[tuple[UnitId, ModelName], tuple[UnitId, ModelName]],
    reason: PlanReason,
) -> Iterator[PlanStep]:
    old = {member.model: member for member in before.members} if before else {}
    for member in unit.members:
        had = old.get(member.model)
        source = sources.get((unit.id, member.model))
        if had is not None:
            yield from _resizes(unit.id, had, member)
        elif source is not None:
            yield PlanStep(
                kind=StepKind.MOVE_ENGINE,
                reason=reason,
                unit=unit.id,
                model=member.model,
                source=source[0],
                disruptive=True,
                predicted_unavailable_s=MOVE_UNAVAILABLE_S,
            )
        else:
            yield _step(StepKind.START_ENGINE, PlanReason.FITS_FREE, unit.id, member.model)


def _resizes(unit: UnitId, had: Member, member: Member) -> Iterator[PlanStep]:
    if had.share != member.share:
        yield _step(StepKind.RESIZE_SHARE, PlanReason.KEEP_IN_PLACE, unit, member.model)
    if had.kv != member.kv:
        yield _step(StepKind.RESIZE_KV, PlanReason.KEEP_IN_PLACE, unit, member.model)


def _step(
    kind: StepKind,
    reason: PlanReason,
    unit: UnitId,
    model: ModelName | None = None,
    *,
    disruptive: bool = False,
) -> PlanStep:
    return PlanStep(kind=kind, reason=reason, unit=unit, model=model, disruptive=disruptive)
