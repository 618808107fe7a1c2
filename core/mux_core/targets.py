"""From a plan to the unit documents that carry it out."""

from collections.abc import Mapping
from dataclasses import replace

from mux_core.carriers import out_of_reach
from mux_core.errors import InvariantError
from mux_core.placement import Member, Unit
from mux_core.planning import Plan
from mux_core.problem import Question, resolution, running_members, served_names
from mux_core.snapshot import LlmObject, Observation, Snapshot, UnitRecord
from mux_core.units import ModelName, UnitId
from mux_core.unitspec import MemberSpec, UnitSpec


def targets(snapshot: Snapshot, asked: Question, plan: Plan) -> dict[UnitId, UnitRecord]:
    """Every unit that should be, by id; a record that needs no change is the written one.

    A pool that cannot be read changes nothing: its units stay as written.
    """
    named = served_names(snapshot.seen)
    objects = {item.name: _called(item, named) for item in snapshot.seen.members}
    if snapshot.seen.pool is not None and snapshot.seen.pool.spec_error:
        kept = (_without_gone(record, frozenset(objects)) for record in snapshot.seen.units)
        return {record.unit: record for record in kept if record.spec.members}
    port_of = ports(snapshot.seen)
    barred = out_of_reach(snapshot.seen)
    wanted = {}
    for unit in plan.proposed.units:
        written = next((r for r in snapshot.seen.units if r.unit == unit.id), None)
        members = tuple(
            _member_spec(member, objects[member.model], snapshot, written, port_of)
            for member in unit.members
            if (member.model, unit.id) not in barred
        )
        if members:
            wanted[unit.id] = _record(snapshot, unit, written, members)
    return wanted


def _called(item: LlmObject, named: Mapping[ModelName, str]) -> LlmObject:
    """`item` under the name it has, which is not always the one it asks for."""
    if item.spec is None or item.name not in named:
        return item
    return replace(item, spec=replace(item.spec, served_name=named[item.name]))


def _without_gone(record: UnitRecord, models: frozenset[ModelName]) -> UnitRecord:
    members = tuple(m for m in record.spec.members if m.model in models)
    if members == record.spec.members:
        return record
    spec = replace(record.spec, members=members, generation=record.spec.generation + 1)
    return replace(record, spec=spec)


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
    """The member as its LLMDeployment says, if it can be read; its checkpoint as last read well."""
    spec = item.spec
    assert spec is not None
    before = written.spec.member(member.model) if written is not None else None
    if before is not None and item.spec_error:
        return before
    result = MemberSpec(
        model=member.model, served_name=spec.served_name, path=item.path,
        port=port_of.get(member.model, 0), replica=member.replica, tensor=member.tensor,
        engine="Torch" if spec.engine == "Auto" else spec.engine, dtype=spec.dtype,
        max_model_len=spec.max_model_len, prefill_percent=member.share.prefill,
        decode_percent=member.share.decode,
        kv_guaranteed_bytes=member.kv.guaranteed // member.tensor,
        kv_limit_bytes=member.kv.limit // member.tensor, rate=member.rate,
        concurrency=member.concurrency, priority=spec.priority,
        slo_ttft_s=spec.slo.ttft_s if spec.slo else None,
        slo_tpot_s=spec.slo.tpot_s if spec.slo else None, drain_timeout_s=spec.drain_timeout_s,
    )  # fmt: skip
    known = resolution(item, snapshot.seen)
    if before is not None and (known is None or known.error_reason):
        return replace(result, path=before.path, dtype=before.dtype,
                       max_model_len=before.max_model_len)  # fmt: skip
    return result
