"""The steps from one placement to another, each with its reason."""

from collections.abc import Iterator

from mux_core.placement import Member, Placement, Unit
from mux_core.planners.holding import live_nodes, surplus
from mux_core.planning import PlacementProblem, PlanReason, PlanStep, StepKind
from mux_core.units import ModelName, UnitId, format_bytes

MOVE_UNAVAILABLE_S = 0.0
"""A move starts the new engine before it stops the old one; without a spare GPU the shell holds."""


def steps_between(
    problem: PlacementProblem, proposed: Placement, *, reason: PlanReason
) -> tuple[PlanStep, ...]:
    """What changes: units and engines that appear, then shares and KV, then what goes.

    Disruptive is what a running engine notices: a move, an end nobody asked for, and on a GPU
    another share, which a process has for life.
    """
    current = problem.current
    sources = _sources(current, proposed)
    live = live_nodes(problem)
    steps: list[PlanStep] = []
    for unit in proposed.units:
        before = current.unit(unit.id)
        if before is None:
            steps.append(_step(StepKind.CREATE_UNIT, PlanReason.FITS_FREE, unit.id,
                               message=f"on {_gpus(unit)}"))  # fmt: skip
        steps.extend(_engine_steps(before, unit, sources, reason, unit.group.node in live))
    steps.extend(_endings(problem, proposed, sources, reason))
    return tuple(steps)


def _endings(
    problem: PlacementProblem,
    proposed: Placement,
    sources: dict[tuple[UnitId, ModelName], tuple[UnitId, ModelName]],
    reason: PlanReason,
) -> Iterator[PlanStep]:
    """Engines that end without a successor, and units left empty."""
    asked_for = surplus(problem)
    moved = set(sources.values())
    for unit in problem.current.units:
        after = proposed.unit(unit.id)
        for member in unit.members:
            place = (unit.id, member.model)
            if (after is not None and member.model in after.models) or place in moved:
                continue
            if place in asked_for:
                yield _step(StepKind.STOP_ENGINE, PlanReason.SPEC_CHANGED, *place,
                            message="more replicas run than the model may have")  # fmt: skip
            else:
                yield _step(StepKind.STOP_ENGINE, reason, *place, disruptive=True)
        if after is None:
            yield _step(StepKind.DELETE_UNIT, reason, unit.id)


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
    live: bool,
) -> Iterator[PlanStep]:
    old = {member.model: member for member in before.members} if before else {}
    for member in unit.members:
        had = old.get(member.model)
        source = sources.get((unit.id, member.model))
        if had is not None:
            yield from _resizes(unit.id, had, member, live)
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
            why = PlanReason.FITS_FREE if before is None else PlanReason.KEEP_IN_PLACE
            yield _step(StepKind.START_ENGINE, why, unit.id, member.model, message=_told(member))


def _resizes(unit: UnitId, had: Member, member: Member, live: bool) -> Iterator[PlanStep]:
    why = PlanReason.KEEP_IN_PLACE
    if had.share != member.share:
        message = (f"prefill {had.share.prefill} -> {member.share.prefill} %, "
                   f"decode {had.share.decode} -> {member.share.decode} %")  # fmt: skip
        yield _step(StepKind.RESIZE_SHARE, why, unit, member.model, disruptive=not live,
                    message=f"{message}{_rates(had, member)}")  # fmt: skip
    if had.kv != member.kv:
        message = (f"guaranteed {format_bytes(had.kv.guaranteed)} -> "
                   f"{format_bytes(member.kv.guaranteed)}, limit {format_bytes(had.kv.limit)} -> "
                   f"{format_bytes(member.kv.limit)}")  # fmt: skip
        yield _step(StepKind.RESIZE_KV, why, unit, member.model,
                    message=f"{message}{_rates(had, member)}")  # fmt: skip


def _rates(had: Member, member: Member) -> str:
    if had.rate == member.rate:
        return ""
    return f" for {had.rate:g} -> {member.rate:g} requests/s"


def _told(member: Member) -> str:
    return (f"for {member.rate:g} requests/s with decode {member.share.decode} %, "
            f"{format_bytes(member.kv.guaranteed)} of KV guaranteed")  # fmt: skip


def _gpus(unit: Unit) -> str:
    return f"{unit.group.node}, GPU {','.join(str(gpu) for gpu in unit.group.gpus)}"


def _step(
    kind: StepKind,
    reason: PlanReason,
    unit: UnitId,
    model: ModelName | None = None,
    *,
    disruptive: bool = False,
    message: str = "",
) -> PlanStep:
    return PlanStep(kind=kind, reason=reason, unit=unit, model=model, disruptive=disruptive,
                    message=message)  # fmt: skip
