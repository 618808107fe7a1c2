"""How the unit is, as the control protocol says it."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from mux_core.engine import Phase
from mux_core.lifecycle import MemberState
from mux_core.reasons import Reason
from mux_runtime.brain.members import UnitMembers
from mux_runtime.control import control_pb2 as pb
from mux_runtime.openai.series import Judged
from mux_runtime.scheduler.hosts import HostSlot
from mux_runtime.scheduler.members import Counters, Member
from mux_runtime.scheduler.unit import UnitScheduler

_NOBODY: Final[Mapping[str, Judged]] = MappingProxyType({})


def unit_status(
    members: UnitMembers, start_id: str, *, answering: Collection[str] | None,
    unanswerable: Mapping[str, str], judged: Mapping[str, Judged] = _NOBODY,
) -> pb.UnitStatus:  # fmt: skip
    """`answering`: models the front can be asked for (None: there is no front).

    `unanswerable`: why the front cannot, by model (a missing tokenizer). `judged`: requests that
    came to the front itself, held against their model's SLO.
    """
    scheduler, spec = members.scheduler, members.spec
    unit = scheduler.memory.unit_bytes
    allocator = scheduler.allocator
    return pb.UnitStatus(
        unit=spec.unit, start_id=start_id, generation=spec.generation,
        applied_generation=members.applied_generation,
        members=[_member(m, scheduler, answering, unanswerable, judged.get(m.model, Judged()))
                 for _, m in sorted(scheduler.members.items())],
        kv_total_bytes=scheduler.memory.kv_units * unit,
        kv_free_bytes=allocator.free_units * unit,
        weights_bytes=allocator.reserved_units * unit,
        allocator=allocator.kind,
    )  # fmt: skip


def _member(
    m: Member, scheduler: UnitScheduler, answering: Collection[str] | None,
    unanswerable: Mapping[str, str], judged: Judged,
) -> pb.MemberStatus:  # fmt: skip
    unit = scheduler.memory.unit_bytes
    state, reason, message, permanent = m.state, m.reason, m.message, m.permanent
    if state is MemberState.SERVING and m.model in unanswerable:
        state, reason, permanent = MemberState.FAILED, Reason.TOKENIZER_MISSING, True
        message = unanswerable[m.model]
    elif state is MemberState.SERVING and answering is not None and m.model not in answering:
        state, reason, message = MemberState.STARTING, Reason.STARTING, "its tokenizer is loading"
    elif state is MemberState.SERVING:
        message = "; ".join(filter(None, [message, *map(_old_share, m.slots.values())]))
    return pb.MemberStatus(
        model=m.model, served_name=m.spec.served_name, state=state, reason=reason, message=message,
        permanent=permanent, counters=_counters(m.counters, judged), waiting=len(m.queue),
        running=m.running, kv_used_bytes=m.units_used(scheduler.allocator) * unit,
        kv_quota_bytes=m.quota * unit, kv_guaranteed_bytes=m.floor * unit,
        kv_limit_bytes=m.limit * unit,
        weight_bytes=m.card.weight_bytes if m.card is not None else 0,
        hosts=[_host(m, phase) for phase in Phase],
    )  # fmt: skip


def _old_share(slot: HostSlot) -> str:
    """A process on a GPU keeps the share it was started with."""
    if not slot.seen_sms or slot.percent == slot.started_percent:
        return ""
    return (f"its {slot.phase} host runs at {slot.started_percent} % of the SMs until it starts "
            f"again; {slot.percent} % is planned")  # fmt: skip


def _host(m: Member, phase: Phase) -> pb.HostStatus:
    slot = m.slots[phase]
    return pb.HostStatus(phase=phase.value, pid=slot.pid, state=slot.state,
                         restarts=slot.restarts, planned_percent=slot.percent,
                         seen_sms=slot.seen_sms)  # fmt: skip


def _counters(c: Counters, judged: Judged) -> pb.Counters:
    return pb.Counters(
        arrivals=c.arrivals, finished=c.finished, rejected=c.rejected, cancelled=c.cancelled,
        prompt_tokens=c.prompt_tokens, generated_tokens=c.generated_tokens,
        ttft_seconds_sum=c.ttft_s, ttft_count=c.ttft_count, tpot_seconds_sum=c.tpot_s,
        tpot_count=c.tpot_count, ttft_counts=c.ttft_counts, tpot_counts=c.tpot_counts,
        slo_judged=judged.judged, slo_met=judged.met,
    )  # fmt: skip
