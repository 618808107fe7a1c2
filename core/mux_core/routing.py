"""The namespace's route table as it should be now.

A route exists for every LLMDeployment that holds its served name, with or without an endpoint: a
model that cannot serve answers 503 with its reason, an unknown one 404. What a unit said before
this operator knew it stays: a restarted operator must not empty the table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mux_core.carriers import live_carrier
from mux_core.problem import served_names
from mux_core.reasons import Reason
from mux_core.routes import Endpoint, Route, RouteTable, planned_weight
from mux_core.snapshot import Carrier, CarrierState, LlmObject, Observation, Snapshot, UnitRecord
from mux_core.units import UnitId
from mux_core.unitspec import MemberSpec


def route_table(snapshot: Snapshot, wanted: Mapping[UnitId, UnitRecord]) -> RouteTable:
    """The table to publish; of the published generation when nothing in it changed."""
    seen = snapshot.seen
    published = seen.routes or RouteTable(namespace=seen.key.namespace, pool=seen.key.name)
    named = served_names(seen)
    mine = {item.name for item in seen.members}
    others = {item.name for item in seen.llms} - mine
    routes = [route for route in published.routes if route.model in others]
    if seen.pool is not None:
        routes += [_route(snapshot, wanted, item, named[item.name]) for item in seen.members
                   if item.name in named]  # fmt: skip
    table = replace(published, routes=tuple(sorted(routes, key=lambda r: r.served_name)))
    table = _limited(table, seen)
    if seen.routes is not None and table == published:
        return published
    newest = max([published.generation, *snapshot.has_table.values()])
    return replace(table, generation=newest + 1)


def _limited(table: RouteTable, seen: Observation) -> RouteTable:
    """With the limits of the pool the table is named after: one of the namespace's, while it is."""
    if table.pool not in ("", seen.key.name):
        return table
    if seen.pool is None:
        return replace(table, pool="")
    if seen.pool.spec_error:
        return table
    limits = seen.pool.spec.gateway
    return replace(table, pool=seen.key.name, hold_timeout_s=limits.hold_timeout_s,
                   max_queued_per_model=limits.max_queued_per_model)  # fmt: skip


def _route(
    snapshot: Snapshot, wanted: Mapping[UnitId, UnitRecord], item: LlmObject, name: str
) -> Route:  # fmt: skip
    spec = item.spec
    assert spec is not None
    endpoints = tuple(_endpoints(snapshot, wanted, item, name))
    return Route(
        model=item.name, served_name=name, endpoints=endpoints,
        reason="" if endpoints else Reason.NO_READY_UNIT,
        slo_ttft_s=spec.slo.ttft_s if spec.slo else None,
        slo_tpot_s=spec.slo.tpot_s if spec.slo else None,
    )  # fmt: skip


def _endpoints(
    snapshot: Snapshot, wanted: Mapping[UnitId, UnitRecord], item: LlmObject, served_name: str
) -> Iterator[Endpoint]:
    for unit, record in sorted(wanted.items()):
        member = record.spec.member(item.name)
        carrier = live_carrier(snapshot.seen, unit)
        if member is None or carrier is None or carrier.state is not CarrierState.RUNNING:
            continue
        endpoint = _endpoint(unit, carrier, member)
        if endpoint is None:
            continue
        report = snapshot.reports.get(unit)
        if report is None:
            yield from _as_published(snapshot, endpoint, served_name)
        else:
            told = report.members.get(item.name)
            named = told is not None and told.served_name in ("", served_name)
            if told is not None and told.state == "Serving" and named:
                yield endpoint


def _endpoint(unit: UnitId, carrier: Carrier, member: MemberSpec) -> Endpoint | None:
    if carrier.address is None:
        return None
    return Endpoint(unit=unit, host=carrier.address.host, port=carrier.address.internal,
                    weight=planned_weight(member.rate, member.concurrency))  # fmt: skip


def _as_published(
    snapshot: Snapshot, endpoint: Endpoint, served_name: str
) -> Iterator[Endpoint]:  # fmt: skip
    """The endpoint, if the published table already had it."""
    published = snapshot.seen.routes.route(served_name) if snapshot.seen.routes else None
    for known in published.endpoints if published is not None else ():
        if (known.unit, known.host, known.port) == (endpoint.unit, endpoint.host, endpoint.port):
            yield endpoint
