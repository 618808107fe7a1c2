"""What must hold at every event of a run; a broken rule is a bug and raises InvariantError."""

from collections.abc import Iterable
from math import isclose

from mux_core.batching import is_at_edge, rows_for
from mux_core.errors import InvariantError
from mux_core.simulator.engine import Engine
from mux_core.simulator.member import SimMember, Visit
from mux_core.simulator.unit import SimUnit


def audit_unit(unit: SimUnit) -> None:
    """Blocks free and owned are all there are; no SM part is granted twice."""
    used = sum(member.used for member in unit.members)
    _equal(unit, "free and used units", unit.free + used, unit.total)
    percents = sum(host.sms for member in unit.members for host in member.hosts)
    _equal(unit, "percents in flight", unit.sm_in_use, percents)
    if unit.sm_in_use > unit.limits.sm_percent:
        raise InvariantError(f"unit {unit.plan.id}: {unit.sm_in_use}% of the SMs in flight, limit "
                             f"{unit.limits.sm_percent}%")  # fmt: skip
    if unit.free < 0:
        raise InvariantError(f"unit {unit.plan.id}: {unit.free} units free")
    for member in unit.members:
        _audit_member(unit, member)


def _audit_member(unit: SimUnit, member: SimMember) -> None:
    crossing = sum(rows_for(visit.computed, member.block) for visit in member.crossing)
    _equal(unit, f"rows of {member.model} that cross", member.crossing_rows, crossing)
    for host in member.hosts:
        _audit_engine(unit, member, host.engine)
    orders = [visit.order for visit in member.queue]
    if orders != sorted(orders):
        raise InvariantError(f"unit {unit.plan.id}: the queue of {member.model} lost its order")


def _audit_engine(unit: SimUnit, member: SimMember, engine: Engine[Visit]) -> None:
    rows = sum(engine.rows_of(visit) for visit in engine.requests)
    _equal(unit, f"rows of {member.model}", engine.rows, rows)
    lengths = [engine.length_of(visit) for visit in engine.decoding]
    _equal(unit, f"context of {member.model}", engine.context, sum(lengths))
    edges = sum(is_at_edge(length, member.block) for length in lengths)
    _equal(unit, f"requests of {member.model} at an edge", len(engine.at_edge), edges)


def audit_flow(arrived: int, served: int, rejected: int, inside: int) -> None:
    """Nobody is lost on the way."""
    if arrived != served + rejected + inside:
        raise InvariantError(f"{arrived} arrived, {served} served, {rejected} rejected, {inside} "
                             "waiting or running; they do not add up")  # fmt: skip


def audit_little(laws: Iterable[tuple[str, float, float]]) -> None:
    """Requests inside, and what they spent inside by the log: counted apart, they are equal."""
    for model, inside, spent in laws:
        if not isclose(inside, spent, rel_tol=1e-6, abs_tol=1e-6):
            raise InvariantError(f"LLM {model}: {inside} requests inside on average; by the log "
                                 f"they spent {spent} s per second there")  # fmt: skip


def _equal(unit: SimUnit, what: str, counted: int, found: int) -> None:
    if counted != found:
        raise InvariantError(f"unit {unit.plan.id}: {what}: {counted} by the books, {found} found")
