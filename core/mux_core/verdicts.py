"""From a snapshot, a plan and what was done to the statuses of the LLMs of a pool; pure.

One function per condition, in the order in which `Ready` reads them; each says why in a message
that names the subject, the value, the limit and the fix.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mux_core.carriers import live_carrier, out_of_reach, unmounted_claim
from mux_core.comparison import predicted_figures
from mux_core.planning import PlanReason
from mux_core.pool_verdicts import Outcome, no, pool_status, waiting, yes
from mux_core.problem import UNPLANNED, known_demand, name_losers, resolution, served_names, usable
from mux_core.rates import is_stale
from mux_core.reasons import (
    REASONS,
    ConditionType,
    Reason,
    condition,
    settled,
    with_ready,
)
from mux_core.routes import RouteTable
from mux_core.routing import route_table
from mux_core.seldom import seldom
from mux_core.snapshot import CarrierState, LlmObject, MemberReport, Snapshot, UnitRecord
from mux_core.status import (
    Condition,
    Figures,
    LlmStatus,
    PlacementStatus,
    StatusReport,
    Truth,
)
from mux_core.targets import ports, targets
from mux_core.units import Bytes, ModelName, Percent, UnitId, format_bytes
from mux_core.unitspec import Device, MemberSpec

TOLD_SHORT: Final = 0.05
"""Part of a model's demand that must be unserved by prediction for its status to say so."""
SILENT_S: Final = 30.0
"""A unit not heard for so long is unreachable; what it said last still routes."""

_C, _R = ConditionType, Reason
_REFUSALS: Final = {
    PlanReason.DOES_NOT_FIT: _R.DOES_NOT_FIT, PlanReason.TENANT_CONFLICT: _R.TENANT_CONFLICT,
    PlanReason.TENANT_ISOLATION: _R.TENANT_CONFLICT,
}  # fmt: skip
_WRONG_SHARES: Final = {reason.value: reason for reason in REASONS[_C.SHARE_VERIFIED][Truth.FALSE]}
_RUNTIME: Final = {reason.value: reason for reason in REASONS[_C.RUNTIME_READY][Truth.FALSE]}


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What the conditions of one LLM look at."""

    item: LlmObject
    outcome: Outcome
    wanted: Mapping[UnitId, UnitRecord]
    table: RouteTable
    losers: Mapping[ModelName, ModelName] = field(default_factory=dict)

    @property
    def snapshot(self) -> Snapshot:
        return self.outcome.snapshot

    @property
    def named(self) -> str:
        """What it is served as; what it asks for, where another holds that."""
        asked = self.item.spec.served_name if self.item.spec is not None else ""
        return served_names(self.snapshot.seen).get(self.item.name, asked)

    @property
    def places(self) -> list[tuple[UnitRecord, MemberSpec]]:
        """Where the plan has this LLM's replicas."""
        found = [(r, r.spec.member(self.item.name)) for _, r in sorted(self.wanted.items())]
        return [(record, member) for record, member in found if member is not None]

    def told(self, unit: UnitId) -> MemberReport | None:
        report = self.snapshot.reports.get(unit)
        return report.members.get(self.item.name) if report is not None else None


def statuses(outcome: Outcome) -> StatusReport:
    """The statuses of every LLM of the pool and of the pool."""
    snapshot = outcome.snapshot
    wanted = targets(snapshot, outcome.asked, outcome.plan)
    table = route_table(snapshot, wanted)
    losers = name_losers(snapshot.seen)
    llms = {
        item.name: _llm_status(
            _View(item=item, outcome=outcome, wanted=wanted, table=table, losers=losers)
        )
        for item in snapshot.seen.members
    }
    return StatusReport(llms=llms, pool=pool_status(outcome, wanted))


def _llm_status(view: _View) -> LlmStatus:
    item, seen = view.item, view.snapshot.seen
    spec = item.spec
    assert spec is not None
    conditions = tuple(judge(view) for judge in _JUDGES)
    stamped = settled(with_ready(conditions), item.status.conditions,
                      generation=item.generation, now=seen.now)  # fmt: skip
    known = resolution(item, seen)
    places = tuple(_placement(view, record, member) for record, member in view.places)
    ready = sum(1 for place in places if place.state == "Serving")
    previous = usable(item, seen)
    status = LlmStatus(
        observed_generation=item.generation, served_name=view.named, url=seen.url,
        port=ports(seen).get(item.name, 0), state=_state(stamped, places),
        unit=",".join(place.unit for place in places), replicas=spec.min_replicas,
        ready_replicas=ready, conditions=stamped, placements=places,
        demand=known_demand(item, view.snapshot), resolved=known,
        predicted=_predicted(view), observed=view.snapshot.observed.get(item.name),
        previous=previous if previous != known else None,
    )  # fmt: skip
    return seldom(status, item.status, now=seen.now)


def _predicted(view: _View) -> Figures | None:
    """Of the plan that is carried out; while one is searched, what was last predicted."""
    item, models = view.item, view.outcome.plan.prediction.models
    return predicted_figures(models[item.name]) if item.name in models else item.status.predicted


def _resolved(view: _View) -> Condition:
    item = view.item
    spec = item.spec
    assert spec is not None
    if item.spec_error:
        return no(_C.MODEL_RESOLVED, _R.INVALID_SPEC, item.spec_error, permanent=True)
    if item.name in view.losers:
        return no(_C.MODEL_RESOLVED, _R.NAME_CONFLICT,
                   f"model.servedName: {spec.served_name!r} is taken by LLMDeployment "
                   f"{view.losers[item.name]}; choose another", permanent=True)  # fmt: skip
    if item.source_error:
        return no(_C.MODEL_RESOLVED, _R.UNSUPPORTED_SOURCE, item.source_error, permanent=True)
    known = resolution(item, view.snapshot.seen)
    rejected = view.snapshot.rejected.get(("inspection", item.name))
    if known is None and rejected:
        return no(_C.MODEL_RESOLVED, _R.INSPECTION_FAILED, rejected)
    if known is None:
        runs = [run for run in view.snapshot.seen.inspections if run.model == item.name]
        waits = "".join(f": {run.message}" for run in runs if run.message)
        return condition(_C.MODEL_RESOLVED, Truth.UNKNOWN, _R.RESOLVING,
                         f"reading {spec.source.key}{waits}")  # fmt: skip
    if known.error_reason:
        reason = Reason(known.error_reason)
        return no(_C.MODEL_RESOLVED, reason, known.message,
                   permanent=reason is not _R.INSPECTION_FAILED)  # fmt: skip
    return yes(_C.MODEL_RESOLVED, _R.RESOLVED)


def _cached(view: _View) -> Condition:
    known = resolution(view.item, view.snapshot.seen)
    if known is not None and not known.error_reason:
        return yes(_C.WEIGHTS_CACHED, _R.CACHED)
    return condition(_C.WEIGHTS_CACHED, Truth.UNKNOWN, _R.PENDING)


def _demand_known(view: _View) -> Condition:
    measured = known_demand(view.item, view.snapshot)
    if measured is not None and not is_stale(measured, now=view.snapshot.now):
        return yes(_C.DEMAND_KNOWN, _R.RUNTIME_COUNTERS)
    if measured is not None:
        return no(_C.DEMAND_KNOWN, _R.STALE, "no unit or gateway was heard for 5 minutes; the "
                   "last rate is planned with")  # fmt: skip
    if view.item.spec is not None and view.item.spec.declared is not None:
        return yes(_C.DEMAND_KNOWN, _R.DECLARED)
    return no(_C.DEMAND_KNOWN, _R.NO_SAMPLES, "no request counted yet; set "
               "workload.requestRate to plan with a rate")  # fmt: skip


def _placed(view: _View) -> Condition:
    seen, item = view.snapshot.seen, view.item
    spec = item.spec
    assert spec is not None
    if seen.pool is None:
        return no(_C.PLACED, _R.POOL_NOT_FOUND, f"poolRef: GPUPool {spec.pool!r} does not exist "
                   f"in namespace {seen.key.namespace}; create it or change poolRef")  # fmt: skip
    if seen.pool.spec_error:
        return no(_C.PLACED, _R.INVALID_SPEC, f"GPUPool {spec.pool}: {seen.pool.spec_error}")
    refusal = next((u for u in view.outcome.plan.unplaced if u.model == item.name), None)
    if refusal is not None:
        reason = _REFUSALS.get(refusal.reason, _R.NO_CAPACITY)
        barred = _barred(view) if reason is not _R.DOES_NOT_FIT else None
        return (
            barred
            or _awaiting(view)
            or no(_C.PLACED, reason, refusal.message, permanent=reason is _R.DOES_NOT_FIT)
        )
    if view.places:
        reason = _R.EXCLUSIVE if spec.sharing.exclusive else _R.SHARED
        return yes(_C.PLACED, reason, _short_of_request(view) or _short_of_demand(view))
    return _barred(view) or _unplaced(view)


def _short_of_request(view: _View) -> str:
    """Said of a running model whose group cannot guarantee the KV that its spec now asks for."""
    assert view.item.spec is not None
    asked = view.item.spec.sharing.kv_request
    least = min(member.kv_guaranteed_bytes * member.tensor for _, member in view.places)
    if asked <= least:
        return ""
    return (f"sharing.kvCache.request: {format_bytes(asked)} does not fit beside the others; "
            f"{format_bytes(least)} is guaranteed; lower it or remove a model")  # fmt: skip


def _short_of_demand(view: _View) -> str:
    """Said of a placed model that is predicted to get less than what arrives."""
    found = view.outcome.plan.prediction.models.get(view.item.name)
    if found is None or found.offered < UNPLANNED or found.ratio >= 1 - TOLD_SHORT:
        return ""
    return (f"{found.offered:.3g} requests/s arrive, {found.replicas} replicas are predicted to "
            f"serve {found.served:.3g}; raise maxReplicas or add slots")  # fmt: skip


def _awaiting(view: _View) -> Condition | None:
    """Said of a model that has a place only if something running is disturbed."""
    better = view.outcome.choice.awaiting
    if better is None or any(u.model == view.item.name for u in better.unplaced):
        return None
    return no(_C.PLACED, _R.AWAITING_APPROVAL, waiting(better))


def _unplaced(view: _View) -> Condition:
    if view.outcome.planner_error:
        return no(_C.PLACED, _R.PLANNER_ERROR, view.outcome.planner_error)
    return condition(_C.PLACED, Truth.UNKNOWN, _R.PLANNING)


def _barred(view: _View) -> Condition | None:
    """Said of a model without a place that a running unit has no mount for."""
    seen = view.snapshot.seen
    unit = min((u for model, u in out_of_reach(seen) if model == view.item.name), default=None)
    if unit is None or view.places:
        return None
    claim = unmounted_claim(seen, unit, view.item)
    return no(
        _C.PLACED, _R.CLAIM_NOT_MOUNTED, f"unit {unit} runs without claim {claim}; put the "
        "checkpoint on a claim it has, or delete its pod: the next one mounts it")  # fmt: skip


def _runtime_ready(view: _View) -> Condition:
    states = [_replica(view, record) for record, _ in view.places]
    serving = [s for s in states if s.holds]
    if serving:
        return serving[0]
    if states:
        return states[0]
    return no(_C.RUNTIME_READY, _R.UNIT_NOT_READY, "no replica is placed")


def _replica(view: _View, record: UnitRecord) -> Condition:
    """RuntimeReady as one replica sees it."""
    if record.group.node in view.snapshot.seen.lost:
        message = (f"node {record.group.node} of unit {record.unit} is not Ready; bring it back or "
                   "take it from the pool")  # fmt: skip
        return no(_C.RUNTIME_READY, _R.NODE_LOST, message)
    refused = view.snapshot.refused.get(record.unit)
    if refused:
        return no(_C.RUNTIME_READY, _R.UNIT_REFUSED_SPEC, refused)
    carrier = live_carrier(view.snapshot.seen, record.unit)
    rejected = view.snapshot.rejected.get(("unit", record.unit))
    if rejected:
        return no(_C.RUNTIME_READY, _R.UNIT_NOT_READY, rejected)
    if carrier is None or carrier.state is not CarrierState.RUNNING:
        message = carrier.message if carrier is not None else ""
        return no(_C.RUNTIME_READY, _R.UNIT_NOT_READY, message or f"unit {record.unit} starts")
    told = view.told(record.unit)
    report = view.snapshot.reports.get(record.unit)
    if report is None:
        return no(_C.RUNTIME_READY, _R.UNIT_NOT_READY, f"unit {record.unit} starts")
    if view.snapshot.now - report.at > SILENT_S:
        return condition(_C.RUNTIME_READY, Truth.UNKNOWN, _R.UNIT_UNREACHABLE,
                         f"unit {record.unit} has not answered for {SILENT_S:.0f} s")  # fmt: skip
    if told is None:
        return no(_C.RUNTIME_READY, _R.STARTING, f"unit {record.unit} has not heard of it yet")
    return _member_condition(told)


def _member_condition(told: MemberReport) -> Condition:
    match told.state:
        case "Serving":
            return yes(_C.RUNTIME_READY, _R.SERVING)
        case "Draining":
            return no(_C.RUNTIME_READY, _R.DRAINING, told.message)
        case "Failed":
            reason = _RUNTIME.get(told.reason, _R.ENGINE_CRASHED)
            return no(_C.RUNTIME_READY, reason, told.message, permanent=told.permanent)
    return no(_C.RUNTIME_READY, _R.STARTING, told.message)


def _share_verified(view: _View) -> Condition:
    pool = view.snapshot.seen.pool
    if pool is None or pool.spec.device is Device.CPU:
        return condition(_C.SHARE_VERIFIED, Truth.UNKNOWN, _R.NOT_APPLICABLE)
    told = [view.told(record.unit) for record, _ in view.places]
    serving = [m for m in told if m is not None and m.state == "Serving"]
    wrong = next((m for m in told if m is not None and m.reason in _WRONG_SHARES), None)
    if wrong is not None and not serving:
        return no(_C.SHARE_VERIFIED, _WRONG_SHARES[wrong.reason], wrong.message)
    if view.places and all(len(record.spec.members) == 1 for record, _ in view.places):
        return yes(_C.SHARE_VERIFIED, _R.NOT_SHARED)
    if view.places and len(serving) == len(told) and all(min(m.seen_sms, default=0) > 0
                                                         for m in serving):  # fmt: skip
        counts = ", ".join(str(sms) for m in serving for sms in m.seen_sms)
        return yes(_C.SHARE_VERIFIED, _R.MEASURED, f"its hosts see {counts} SMs, as planned")
    # A replica with a wrong share gets no steps; while another serves, that is worth a message.
    return condition(_C.SHARE_VERIFIED, Truth.UNKNOWN, _R.NOT_MEASURED,
                     wrong.message if wrong is not None else "")  # fmt: skip


def _route_ready(view: _View) -> Condition:
    seen = view.snapshot.seen
    route = next((r for r in view.table.routes if r.model == view.item.name), None)
    if route is None or not route.endpoints:
        return no(_C.ROUTE_READY, _R.NO_READY_UNIT, "no unit serves it")
    heard = [view.snapshot.has_table[g.name] for g in seen.gateways
             if g.name in view.snapshot.has_table]  # fmt: skip
    if seen.gateways and not any(has >= view.table.generation for has in heard):
        return no(_C.ROUTE_READY, _R.GATEWAY_DOWN, f"none of {len(seen.gateways)} gateways has "
                   f"route table {view.table.generation}")  # fmt: skip
    unserved = view.snapshot.rejected.get(("service", view.item.name), "")
    return yes(_C.ROUTE_READY, _R.ROUTABLE, unserved)


def _slo_met(view: _View) -> Condition:
    spec = view.item.spec
    if spec is None or spec.slo is None:
        return condition(_C.SLO_MET, Truth.UNKNOWN, _R.NO_SLO)
    return condition(_C.SLO_MET, Truth.UNKNOWN, _R.NOT_MEASURED)


_JUDGES: Final = (
    _resolved, _cached, _demand_known, _placed, _runtime_ready, _share_verified, _route_ready,
    _slo_met,
)  # fmt: skip


def _placement(view: _View, record: UnitRecord, member: MemberSpec) -> PlacementStatus:
    carrier = live_carrier(view.snapshot.seen, record.unit)
    told = view.told(record.unit)
    return PlacementStatus(
        unit=record.unit, pod=carrier.name if carrier is not None else "",
        node=record.group.node, gpus=record.group.gpus, tensor=member.tensor,
        prefill_percent=Percent(member.prefill_percent),
        decode_percent=Percent(member.decode_percent),
        kv_bytes=Bytes(member.kv_guaranteed_bytes * member.tensor),
        state=told.state if told is not None else "Starting",
        reason=told.reason if told is not None else "",
    )  # fmt: skip


def _state(conditions: tuple[Condition, ...], places: tuple[PlacementStatus, ...]) -> str:
    """One word for the column; programs read the conditions."""
    ready = conditions[0]
    if ready.holds:
        return "Serving"
    if any(c.permanent for c in conditions) and not any(p.state == "Serving" for p in places):
        return "Failed"
    if places:
        return places[0].state
    return "Pending"
