"""From a plan to the unit documents that carry it out."""

from collections.abc import Mapping
from dataclasses import replace

from mux_core.errors import InvariantError
from mux_core.placement import Member, Unit
from mux_core.planning import Plan
from mux_core.problem import Question, resolution, running_members
from mux_core.snapshot import Carrier, CarrierState, LlmObject, Observation, Snapshot, UnitRecord
from mux_core.units import ModelName, UnitId
from mux_core.unitspec import MemberSpec, UnitSpec


def targets(snapshot: Snapshot, asked: Question, plan: Plan) -> dict[UnitId, UnitRecord]:
    """Every unit that should be, by id; a record that needs no change is the written one."""
    objects = {item.name: item for item in snapshot.seen.members}
    port_of = ports(snapshot.seen)
    wanted = {}
    for unit in plan.proposed.units:
        written = next((r for r in snapshot.seen.units if r.unit == unit.id), None)
        members = tuple(
            _member_spec(member, objects[member.model], snapshot, written, port_of)
            for member in unit.members
            if not unmounted_claim(snapshot, unit.id, objects[member.model])
        )
        if members:
            wanted[unit.id] = _record(snapshot, unit, written, members)
    return wanted


def ports(seen: Observation) -> dict[ModelName, int]:
    """The own port of every model of this pool: the one it has, else the smallest unused."""
    if seen.first_port is None:
        return {}
    running = running_members(seen)
    taken = {item.name: _port_now(item, running) for item in seen.llms}
    used = {port for port in taken.values() if port}
    result = {}
    for item in seen.members:
        port = taken[item.name]
        if not port:
            port = next(p for p in range(seen.first_port, 65536) if p not in used)
            used.add(port)
        result[item.name] = port
    return result


def unmounted_claim(snapshot: Snapshot, unit: UnitId, item: LlmObject) -> str:
    """The claim a running unit would need and cannot read; empty when all is well."""
    claim = item.spec.source.claim if item.spec is not None else None
    carrier = live_carrier(snapshot, unit)
    if claim is None or carrier is None or carrier.claims is None or claim in carrier.claims:
        return ""
    return claim


def live_carrier(snapshot: Snapshot, unit: UnitId) -> Carrier | None:
    """The carrier of the unit's written incarnation, unless it is dead."""
    record = next((r for r in snapshot.seen.units if r.unit == unit), None)
    if record is None:
        return None
    return next(
        (c for c in snapshot.seen.carriers
         if c.unit == unit and c.incarnation == record.spec.incarnation
         and c.state is not CarrierState.DEAD),
        None,
    )  # fmt: skip


def _port_now(
    item: LlmObject, running: Mapping[ModelName, list[tuple[UnitRecord, MemberSpec]]]
) -> int:
    for _, member in running.get(item.name, ()):
        return member.port
    return item.status.port


def _record(
    snapshot: Snapshot, unit: Unit, written: UnitRecord | None, members: tuple[MemberSpec, ...]
) -> UnitRecord:
    if written is not None:
        if written.spec.members == members:
            return written
        spec = replace(written.spec, members=members, generation=written.spec.generation + 1)
        return replace(written, spec=spec)
    seen = snapshot.seen
    node = next((node for node in seen.nodes if node.name == unit.group.node), None)
    if node is None or seen.pool is None:
        raise InvariantError(f"plan puts unit {unit.id} on {unit.group.node}, which is not there")
    spec = UnitSpec(
        unit=unit.id, pool=seen.key.name, namespace=seen.key.namespace, generation=1,
        incarnation=1, device=seen.pool.spec.device, gpus=unit.group.size,
        memory_bytes=node.memory, members=members,
    )  # fmt: skip
    return UnitRecord(unit=unit.id, group=unit.group, spec=spec)


def _member_spec(
    member: Member,
    item: LlmObject,
    snapshot: Snapshot,
    written: UnitRecord | None,
    port_of: Mapping[ModelName, int],
) -> MemberSpec:
    """The member as its LLMDeployment says; its checkpoint as last read well."""
    spec = item.spec
    assert spec is not None
    before = written.spec.member(member.model) if written is not None else None
    result = MemberSpec(
        model=member.model, served_name=spec.served_name, path=item.path,
        port=port_of.get(member.model, 0), replica=member.replica, tensor=member.tensor,
        engine="Torch" if spec.engine == "Auto" else spec.engine, dtype=spec.dtype,
        max_model_len=spec.max_model_len, prefill_percent=member.share.prefill,
        decode_percent=member.share.decode,
        kv_guaranteed_bytes=member.kv.guaranteed // member.tensor,
        kv_limit_bytes=member.kv.limit // member.tensor, rate=member.rate, priority=spec.priority,
        slo_ttft_s=spec.slo.ttft_s if spec.slo else None,
        slo_tpot_s=spec.slo.tpot_s if spec.slo else None, drain_timeout_s=spec.drain_timeout_s,
    )  # fmt: skip
    known = resolution(item, snapshot.seen)
    if before is not None and (known is None or known.error_reason):
        return replace(result, path=before.path, dtype=before.dtype,
                       max_model_len=before.max_model_len)  # fmt: skip
    return result
