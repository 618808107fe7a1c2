"""Brings a running unit to its spec: members come, go, or change shares and quotas.

`accept` is the gate (typed refusals, nothing changed); `reconcile` is level-triggered: it compares
what is wanted with what runs, and may be called at any time. Members are added and removed one by
one; nobody else notices.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path

from mux_core.lifecycle import MemberState
from mux_core.reasons import Reason
from mux_core.units import format_bytes
from mux_core.unitspec import MemberSpec, UnitSpec, to_json
from mux_runtime.scheduler.members import Member
from mux_runtime.scheduler.unit import UnitScheduler

_log = logging.getLogger(__name__)

_IDENTITY = ("path", "engine", "dtype", "max_model_len", "tensor")
"""Fields that need new hosts when they change."""
ENGINES = ("Torch", "Auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a spec is not taken; subject, value, limit and fix."""

    reason: str
    message: str


@dataclass(slots=True)
class UnitMembers:
    """The wanted spec and the way there."""

    scheduler: UnitScheduler
    spec: UnitSpec
    kept: Path
    applied_generation: int = 0
    leaving: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    closing: bool = False

    def wanted(self, model: str) -> MemberSpec:
        """The spec a member's hosts are started with."""
        return self.scheduler.members[model].spec

    def accept(self, spec: UnitSpec) -> Refusal | None:
        """Makes `spec` the wanted one, unless it cannot be; the same or an older one is a no-op."""
        if (refusal := self._check(spec)) is not None:
            return refusal
        if spec.generation > self.spec.generation:
            self.spec = spec
            self.keep()
            self.reconcile()
        return None

    def keep(self) -> None:
        """Writes the spec down for the next start of this unit."""
        fresh = self.kept.with_suffix(".new")
        fresh.write_text(to_json(self.spec))
        fresh.replace(self.kept)

    def reconcile(self) -> None:
        """Starts every change that is due; the rest follows when those have ended."""
        if self.closing:
            return
        wanted = {m.model: m for m in self.spec.members}
        for model, member in list(self.scheduler.members.items()):
            if model in self.leaving:
                continue
            spec = wanted.get(model)
            if spec is None or _needs_new_hosts(member, spec):
                self._remove(member)
            elif spec != member.spec:
                self.scheduler.resize_member(spec)
        for model, spec in wanted.items():
            if model not in self.scheduler.members:
                _log.info("member_added model=%s path=%s", model, spec.path)
                self.scheduler.add_member(spec)
        self.note_progress()

    def note_progress(self) -> None:
        """Says when everything wanted is as it will be."""
        settled = all(m.state in (MemberState.SERVING, MemberState.FAILED)
                      for m in self.scheduler.members.values())  # fmt: skip
        if settled and not self.leaving:
            self.applied_generation = self.spec.generation

    async def drain(self) -> None:
        """Refuses new requests of every member and lets running ones finish."""
        self.closing = True
        members = list(self.scheduler.members.values())
        await asyncio.gather(*(
            self.scheduler.drain_member(m.model, m.spec.drain_timeout_s) for m in members
        ))  # fmt: skip

    def _remove(self, member: Member) -> None:
        _log.info("member_leaves model=%s running=%d", member.model, member.running)
        self.leaving[member.model] = asyncio.create_task(self._drop(member))

    async def _drop(self, member: Member) -> None:
        try:
            cut = await self.scheduler.remove_member(member.model, member.spec.drain_timeout_s)
            _log.info("member_left model=%s cut=%d", member.model, cut)
        finally:
            del self.leaving[member.model]
        self.reconcile()

    def _check(self, spec: UnitSpec) -> Refusal | None:
        now = self.spec
        for name in ("unit", "incarnation", "device", "gpus", "memory_bytes", "unit_bytes"):
            old, new = getattr(now, name), getattr(spec, name)
            if old != new:
                return Refusal(reason=Reason.UNIT_REFUSED_SPEC, message=(
                    f"unit {now.unit}: {name} is {old} and {new} is wanted; a running unit keeps "
                    "it, start a new incarnation"))  # fmt: skip
        for member in spec.members:
            if (refusal := check_member(spec, member)) is not None:
                return refusal
        return check_floors(spec, self.scheduler)


def check_member(spec: UnitSpec, member: MemberSpec) -> Refusal | None:
    """What this runtime cannot do for a member."""
    refused = Reason.UNIT_REFUSED_SPEC
    subject = f"unit {spec.unit}: model {member.model}"
    if member.engine not in ENGINES:
        return Refusal(reason=refused, message=f"{subject}: engine {member.engine!r}; this runtime "
                       f"has {', '.join(ENGINES)}")  # fmt: skip
    if member.tensor != 1:
        return Refusal(reason=refused, message=f"{subject}: tensor {member.tensor}; this runtime "
                       "runs a model on 1 GPU")  # fmt: skip
    for name in ("prefill_percent", "decode_percent"):
        percent = getattr(member, name)
        if not 1 <= percent <= 100:
            return Refusal(reason=refused, message=f"{subject}: {name} {percent}; 1 to 100")
    if member.kv_limit_bytes < member.kv_guaranteed_bytes:
        return Refusal(reason=refused, message=(
            f"{subject}: KV limit {format_bytes(member.kv_limit_bytes)} is below the guaranteed "
            f"{format_bytes(member.kv_guaranteed_bytes)}; raise it"))  # fmt: skip
    return None


def check_floors(spec: UnitSpec, scheduler: UnitScheduler | None = None) -> Refusal | None:
    """Guaranteed KV and the weights that are known must fit together."""
    floors = sum(m.kv_guaranteed_bytes for m in spec.members)
    weights = 0
    for member in spec.members:
        running = scheduler.members.get(member.model) if scheduler else None
        if running is not None and running.card is not None:
            weights += running.card.weight_bytes
    if floors + weights <= spec.memory_bytes:
        return None
    return Refusal(reason=Reason.DOES_NOT_FIT, message=(
        f"unit {spec.unit}: guaranteed KV of {format_bytes(floors)} and known weights of "
        f"{format_bytes(weights)} need {format_bytes(floors + weights)}, the unit has "
        f"{format_bytes(spec.memory_bytes)}; lower kv_guaranteed_bytes, remove a model or give "
        "the unit more memory"))  # fmt: skip


def _needs_new_hosts(member: Member, spec: MemberSpec) -> bool:
    if member.state in (MemberState.DRAINING, MemberState.STOPPED):
        return True
    if member.state is MemberState.FAILED and spec != member.spec:
        return True
    return any(getattr(spec, name) != getattr(member.spec, name) for name in _IDENTITY)
