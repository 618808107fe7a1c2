"""From a snapshot and a plan to the actions that lead there; pure and in a fixed order.

The order is part of the contract: routes change before a member leaves its unit, records are
written before anything is started, a record goes last. Repeating the decision on the world that
the actions made gives no action.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from mux_core.actions import (
    Action,
    ApplyUnit,
    EndInspection,
    EnsureService,
    ForgetUnit,
    InspectModel,
    LabelUnit,
    PublishRoutes,
    RecordPlan,
    StartUnit,
    StopUnit,
    Why,
    WriteUnit,
)
from mux_core.planning import Choice
from mux_core.problem import Question, next_revision, resolution
from mux_core.routing import route_table
from mux_core.snapshot import Carrier, CarrierState, Snapshot, UnitRecord
from mux_core.targets import ports, targets
from mux_core.units import UnitId

PLANS_KEPT: Final = 10
CLAIMS_AWAITED_S: Final = 15.0
"""How long after its creation a model's claim may hold up the start of a pod."""


def decide(snapshot: Snapshot, asked: Question, choice: Choice) -> tuple[Action, ...]:
    """Everything to do now, in order."""
    wanted = targets(snapshot, asked, choice.plan)
    return (
        *_inspect(snapshot),
        *_record_plan(snapshot, asked, choice),
        *_publish(snapshot, wanted),
        *_label(snapshot, wanted),
        *_expose(snapshot, wanted),
        *(action for record in wanted.values() for action in _carry_out(snapshot, record)),
        *_clear_away(snapshot, wanted),
    )


def _inspect(snapshot: Snapshot) -> Iterator[Action]:
    """Starts inspect runs for sources nobody read yet; ends those whose result is kept."""
    seen = snapshot.seen
    runs = {run.model: run for run in seen.inspections}
    for item in seen.members:
        run = runs.pop(item.name, None)
        assert item.spec is not None
        key = item.spec.source.key
        if run is not None:
            kept = item.status.resolved is not None and item.status.resolved == run.result
            if kept or run.source != key:
                yield EndInspection(model=item.name, why=Why.INSPECTED)
        elif item.path and resolution(item, seen) is None:
            yield InspectModel(model=item.name, source=item.spec.source, path=item.path,
                               uid=item.uid, why=Why.SOURCE_UNKNOWN)  # fmt: skip
    elsewhere = {item.name for item in seen.llms} - {item.name for item in seen.members}
    for name in sorted(set(runs) - elsewhere):
        yield EndInspection(model=name, why=Why.INSPECTED)


def _record_plan(snapshot: Snapshot, asked: Question, choice: Choice) -> Iterator[Action]:
    """Writes down what is carried out now; when nothing is, what would be better and waits."""
    plans = sorted(snapshot.seen.plans, key=lambda record: record.revision)
    known = bool(plans) and plans[-1].inputs_hash == asked.inputs_hash
    plan = choice.plan if choice.plan.steps else choice.awaiting
    if plan is None or known or snapshot.seen.pool is None:
        return
    revision = next_revision(snapshot.seen)
    yield RecordPlan(
        name=f"{snapshot.seen.key.name}-r{revision}", revision=revision,
        inputs_hash=asked.inputs_hash, current=asked.problem.current, plan=plan,
        waits=plan is choice.awaiting,
        before=choice.plan.prediction if plan is choice.awaiting else None,
        superseded=tuple(record.name for record in plans if record.waits),
        expired=tuple(record.name for record in plans[: -(PLANS_KEPT - 1)]),
        why=Why.PLAN_CHANGED,
    )  # fmt: skip


def _publish(snapshot: Snapshot, wanted: Mapping[UnitId, UnitRecord]) -> Iterator[Action]:
    seen = snapshot.seen
    table = route_table(snapshot, wanted)
    changed = seen.routes is None or table.generation != seen.routes.generation
    behind = any(snapshot.has_table.get(g.name, -1) < table.generation for g in seen.gateways)
    if changed or behind:
        yield PublishRoutes(table=table, why=Why.ROUTES_CHANGED)


def _label(snapshot: Snapshot, wanted: Mapping[UnitId, UnitRecord]) -> Iterator[Action]:
    for carrier in sorted(snapshot.seen.carriers, key=lambda c: (c.unit, c.incarnation)):
        report = snapshot.reports.get(carrier.unit)
        if report is None or carrier.state is not CarrierState.RUNNING:
            continue
        record = wanted.get(carrier.unit)
        named = {m.model for m in record.spec.members} if record is not None else set()
        serving = frozenset(m for m, r in report.members.items()
                            if r.state == "Serving" and m in named)  # fmt: skip
        draining = frozenset(report.members) & (carrier.serving | carrier.draining) - serving
        if (serving, draining) != (carrier.serving, carrier.draining):
            yield LabelUnit(unit=carrier.unit, incarnation=carrier.incarnation, serving=serving,
                            draining=draining, why=Why.SERVING_CHANGED)  # fmt: skip


def _expose(snapshot: Snapshot, wanted: Mapping[UnitId, UnitRecord]) -> Iterator[Action]:
    seen = snapshot.seen
    placed = {m.model for record in wanted.values() for m in record.spec.members}
    for model, port in sorted(ports(seen).items()):
        item = next(item for item in seen.llms if item.name == model)
        if model in placed and (model, port) not in seen.services:
            yield EnsureService(model=model, uid=item.uid, port=port, why=Why.PLACED)


def _carry_out(snapshot: Snapshot, record: UnitRecord) -> Iterator[Action]:
    """Brings one wanted unit to run as its record says."""
    written = next((r for r in snapshot.seen.units if r.unit == record.unit), None)
    carriers = {c.incarnation: c for c in snapshot.seen.carriers if c.unit == record.unit}
    current = carriers.get(record.spec.incarnation)
    died = current is not None and current.state is CarrierState.DEAD
    if died:
        record = _next_incarnation(record)
    if written != record:
        why = Why.UNIT_DIED if died else Why.PLACED if written is None else Why.MEMBERS_CHANGED
        yield WriteUnit(record=record, why=why)
    for incarnation, carrier in sorted(carriers.items()):
        if incarnation != record.spec.incarnation and carrier.state is not CarrierState.STOPPING:
            yield StopUnit(unit=record.unit, incarnation=incarnation, why=Why.UNIT_DIED)
    if current is None or died:
        yield from _start(snapshot, record, others=bool(carriers))
    else:
        yield from _tell(snapshot, record, current)


def _start(snapshot: Snapshot, record: UnitRecord, *, others: bool) -> Iterator[Action]:
    """Starts an incarnation once the one before is gone and its pause is over."""
    pool = snapshot.seen.pool
    if pool is None or pool.spec_error:
        return
    if others or snapshot.now < snapshot.not_before.get(record.unit, 0.0):
        return
    claims, awaited = _claims(snapshot)
    if not awaited:
        yield StartUnit(record=record, claims=claims, why=Why.UNIT_MISSING)


def _claims(snapshot: Snapshot) -> tuple[frozenset[str], frozenset[str]]:
    """Claims an inspect run has read, and young ones whose run a first pod waits for.

    A pod that mounts an absent claim never starts, and one that runs mounts no other later.
    """
    read, awaited = set(), set()
    for item in snapshot.seen.members:
        claim = item.spec.source.claim if item.spec is not None else None
        if claim is None or not item.path:
            continue
        if item.status.previous is not None or resolution(item, snapshot.seen) is not None:
            read.add(claim)
        elif snapshot.now - item.created_at < CLAIMS_AWAITED_S:
            awaited.add(claim)
    return frozenset(read), frozenset(awaited - read)


def _tell(snapshot: Snapshot, record: UnitRecord, carrier: Carrier) -> Iterator[Action]:
    report = snapshot.reports.get(record.unit)
    if carrier.address is None or carrier.state is not CarrierState.RUNNING or report is None:
        return
    if report.generation < record.spec.generation and record.unit not in snapshot.refused:
        yield ApplyUnit(unit=record.unit, address=carrier.address, spec=record.spec,
                        why=Why.SPEC_BEHIND)  # fmt: skip


def _clear_away(snapshot: Snapshot, wanted: Mapping[UnitId, UnitRecord]) -> Iterator[Action]:
    """Stops units nobody wants; their record goes when nothing runs any more."""
    gone = snapshot.seen.pool is None
    why = Why.POOL_GONE if gone else Why.UNIT_EMPTY
    running: dict[UnitId, list[Carrier]] = {}
    for carrier in snapshot.seen.carriers:
        running.setdefault(carrier.unit, []).append(carrier)
    for unit in sorted({*running, *(record.unit for record in snapshot.seen.units)} - set(wanted)):
        carriers = sorted(running.get(unit, ()), key=lambda carrier: carrier.incarnation)
        for carrier in carriers:
            if carrier.state is not CarrierState.STOPPING:
                yield StopUnit(unit=unit, incarnation=carrier.incarnation, why=why)
        if not carriers:
            yield ForgetUnit(unit=unit, why=why)


def _next_incarnation(record: UnitRecord) -> UnitRecord:
    return replace(record, spec=replace(record.spec, incarnation=record.spec.incarnation + 1))
