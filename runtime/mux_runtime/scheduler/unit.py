"""The unit scheduler: takes requests, holds rounds, and keeps every member's hosts alive.

A round is held whenever something changed: a request came or went, a step ended, a host opened.
It reads: snapshot of the members, `adbs_round`, start what was granted, take back what was lent.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from mux_core.adbs import GrantDecision, Preempt, Round, Turn, UnitLoad, Why, adbs_round
from mux_core.engine import Grant, Phase, Row
from mux_core.errors import CapacityError, InvariantError, PeerError
from mux_core.lifecycle import HostEvent, HostState, MemberEvent, MemberState, RequestEvent
from mux_core.reasons import Reason
from mux_core.unitspec import MemberSpec
from mux_runtime.engines.host import EngineDescription
from mux_runtime.generation import GenerationRequest, RequestRefused, ServedModel
from mux_runtime.kvpool.allocator import Allocator, Span
from mux_runtime.scheduler.admission import check_queue, check_request, check_serving
from mux_runtime.scheduler.durations import Durations
from mux_runtime.scheduler.hosts import HostSlot
from mux_runtime.scheduler.keeping import GaveUp, HostKeeper, set_back
from mux_runtime.scheduler.links import HostStarter
from mux_runtime.scheduler.members import Member
from mux_runtime.scheduler.memory import UnitMemory
from mux_runtime.scheduler.requests import OutputStream, Request
from mux_runtime.scheduler.rows import Rows
from mux_runtime.scheduler.settings import Settings
from mux_runtime.scheduler.stepping import Stepper, cancel, free_handoff

_log = logging.getLogger(__name__)


class UnitScheduler:
    """All members of one unit on one allocator. Lives in one event loop; nothing blocks it."""

    def __init__(self, *, allocator: Allocator, starter: HostStarter, unit_bytes: int,
                 settings: Settings | None = None,
                 on_reserved: Callable[[Sequence[Span]], None] | None = None) -> None:  # fmt: skip
        self.allocator = allocator
        self.settings = settings or Settings()
        self.members: dict[str, Member] = {}
        self.memory = UnitMemory(allocator=allocator, unit_bytes=unit_bytes)
        self.bugs = 0
        self.changed = asyncio.Event()
        self.round_seconds = Durations()
        self.step_seconds = {phase: Durations() for phase in Phase}
        self.holds: Counter[Why] = Counter()
        self._on_reserved = on_reserved
        self._starter = starter
        self._clock = time.monotonic
        self._turn = Turn()
        self._sm_in_use = 0
        self._orders = 0
        self._epochs = 0
        self._wake_due = False
        self._rebalance_due: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.rows = Rows(allocator)
        self._stepper = Stepper(rows=self.rows, settings=self.settings, clock=self._clock,
                                on_bug=self._count_bug)  # fmt: skip
        self._keeper = HostKeeper(
            starter=starter, rows=self.rows, settings=self.settings,
            next_epoch=self._next_epoch, on_described=self._described, on_open=self._opened,
            on_gone=self._gone, on_failed=self._failed,
        )  # fmt: skip

    # Generator

    def models(self) -> tuple[ServedModel, ...]:
        serving = [m for m in self.members.values() if m.state is MemberState.SERVING]
        return tuple(self._served(m) for m in sorted(serving, key=lambda m: m.spec.served_name))

    def count_arrival(self, model: str) -> None:
        if model in self.members:
            self.members[model].counters.arrivals += 1

    def submit(self, request: GenerationRequest) -> OutputStream:
        member = check_serving(self.members.get(request.model), request.model)
        try:
            kv_tokens = self.memory.kv_tokens(member, self.members.values())
            check_request(member, request, kv_tokens=kv_tokens)
            if any(r.rid == request.rid for r in member.requests):
                raise RequestRefused(f"request {request.rid}: this id is running; use another")
            check_queue(member, max_queue=self.settings.max_queue)
        except (RequestRefused, CapacityError):
            member.counters.rejected += 1
            raise
        self._orders += 1
        record = Request(asked=request, order=self._orders, arrived=self._clock())
        member.enqueue(record)
        self.wake()
        return OutputStream(record, self._cancel)

    # Members

    def add_member(self, spec: MemberSpec) -> Member:
        """Starts a member's hosts; its state tells what becomes of it."""
        percents = {Phase.PREFILL: spec.prefill_percent, Phase.DECODE: spec.decode_percent}
        slots = {phase: HostSlot(model=spec.model, phase=phase, percent=percents[phase])
                 for phase in Phase}  # fmt: skip
        member = Member(spec=spec, slots=slots)
        self.memory.size(member, spec)
        self.members[spec.model] = member
        member.keepers = [asyncio.create_task(self._keeper.keep(member, slot))
                          for slot in slots.values()]  # fmt: skip
        self._notify()
        return member

    def resize_member(self, spec: MemberSpec) -> None:
        """Gives a running member new shares, quotas and names; its requests go on."""
        member = self.members[spec.model]
        member.spec = spec
        member.prefill.percent, member.decode.percent = spec.prefill_percent, spec.decode_percent
        self.memory.size(member, spec)
        self._rebalance()

    async def drain_member(self, model: str, timeout_s: float) -> int:
        """Refuses new requests and waits for the running ones; how many had to be cut."""
        member = self.members[model]
        if member.state not in (MemberState.DRAINING, MemberState.STOPPED):
            member.happen(MemberEvent.DRAIN)
            member.reason, member.message = Reason.DRAINING, "running requests finish"
            self._notify()
        self.wake()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(member.empty.wait(), timeout_s)
        left = [request for request in member.requests if not request.is_over]
        cut = PeerError(f"model {model}: drained for {timeout_s:.0f} s; the request was cut")
        for request in left:
            self._fail(member, request, cut)
        return len(left)

    async def remove_member(self, model: str, timeout_s: float) -> int:
        """Drains a member, ends its hosts and gives its rows and weights back."""
        member = self.members[model]
        cut = await self.drain_member(model, timeout_s)
        for request in member.crossing:
            free_handoff(request, self.rows)
        await self._retire(member)
        if member.state is MemberState.DRAINING:
            member.happen(MemberEvent.DRAINED)
        del self.members[model]
        self._rebalance()
        return cut

    async def close(self) -> None:
        """Ends everything at once; requests still running are cut."""
        for member in list(self.members.values()):
            for request in member.requests:
                if not request.is_over:
                    request.fail(PeerError(f"model {member.model}: the unit stops"))
        await asyncio.gather(*(self._end_hosts(m) for m in self.members.values()))
        if self._rebalance_due is not None:
            self._rebalance_due.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    @property
    def is_idle(self) -> bool:
        """Nothing queued, nothing running, no call under way."""
        stepping = any(s.state is HostState.STEPPING
                       for m in self.members.values() for s in m.slots.values())  # fmt: skip
        return not stepping and not any(m.requests for m in self.members.values())

    def audit(self) -> None:
        """Raises InvariantError unless free + owned + reserved = all, and idle means unowned."""
        self.rows.audit()
        if self.is_idle and self.allocator.owned_units:
            raise InvariantError(f"unit is idle but {self.allocator.owned_units} units are owned")

    # Rounds

    def wake(self) -> None:
        """A round soon; many wishes make one."""
        if not self._wake_due:
            self._wake_due = True
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        self._wake_due = False
        for member in self.members.values():
            if member.requests:
                member.empty.clear()
            else:
                member.empty.set()
            for slot in member.slots.values():
                if slot.state is HostState.READY and slot.aborts:
                    slot.happen(HostEvent.CALLED)
                    self._spawn(self._clear(member, slot))
        live = [m for m in self.members.values() if m.card is not None]
        loads = tuple(m.load(self.settings.limits, m.units_used(self.allocator)) for m in live)
        begun = time.perf_counter()
        outcome = adbs_round(
            UnitLoad(members=loads, free_units=self.memory.free_units,
                     sm_in_use=self._sm_in_use, turn=self._turn),
            self.settings.limits,
        )  # fmt: skip
        self.round_seconds.observe(time.perf_counter() - begun)
        self.holds.update(hold.why for hold in outcome.held)
        self._turn = outcome.turn
        for decision in outcome.grants:
            self._start(decision)
        for preempt in outcome.preempts:
            self._preempt(preempt)
        self._note_holds(outcome)
        if self.is_idle:
            self._audit_idle()

    def _start(self, decision: GrantDecision) -> None:
        member = self.members[decision.model]
        slot = member.slots[decision.phase]
        lease = self._lease(member, slot, decision)
        if lease is None:
            return
        self._move_in(member, slot, decision, len(lease))
        if not slot.residents:
            self.allocator.free(lease, member.geometry)
            return
        member.held_since = None
        member.counters.grants[decision.phase] += 1
        slot.happen(HostEvent.CALLED)
        self._sm_in_use += decision.percent
        slot.steps += 1
        grant = Grant(
            step=slot.steps, phases=frozenset({slot.phase}), lease=lease,
            token_budget=decision.token_budget, max_seqs=decision.max_seqs,
        )  # fmt: skip
        self.rows.grant(slot, grant)
        self._spawn(self._step(member, slot, grant, decision.percent))

    def _lease(
        self, member: Member, slot: HostSlot, decision: GrantDecision
    ) -> tuple[Row, ...] | None:
        """Rows for the step: fewer than decided when the free units lie in pieces too small."""
        geometry = member.geometry
        rows = decision.rows
        while rows and not self.allocator.can_lease(geometry, rows):
            rows -= 1
        if rows < decision.rows:
            # Free units lie in pieces; until something is freed, decide with what can be had.
            member.lease_cap = rows * geometry.row_units
            self.wake()
            return None
        return self.rows.lease(slot, geometry, rows)

    def _move_in(
        self, member: Member, slot: HostSlot, decision: GrantDecision, leased: int
    ) -> None:
        """Makes the requests of this step residents of the host."""
        if slot.phase is Phase.DECODE:
            for request in member.crossing:
                slot.residents[request.rid] = slot.newcomers[request.rid] = request
            member.crossing.clear()
            return
        chosen, rows = member.batch(self.settings.limits)
        for request, need in zip(chosen, rows, strict=True):
            leased -= need
            if leased < 0:
                return
            if request.rid not in slot.residents:
                member.queue.remove(request)
                request.step(RequestEvent.ADMITTED)
                slot.residents[request.rid] = slot.newcomers[request.rid] = request

    async def _step(self, member: Member, slot: HostSlot, grant: Grant, percent: int) -> None:
        begun = self._clock()
        try:
            await self._stepper.run(member, slot, grant)
        finally:
            self._sm_in_use -= percent
            self.step_seconds[slot.phase].observe(self._clock() - begun)
            for other in self.members.values():
                other.lease_cap = None
            self.wake()

    async def _clear(self, member: Member, slot: HostSlot) -> None:
        await self._stepper.clear(member, slot)
        member.preempting = False
        self.wake()

    def _preempt(self, preempt: Preempt) -> None:
        """The youngest requests wait again until `units` are on their way back."""
        member = self.members[preempt.model]
        if member.preempting:
            return
        running = [r for s in member.slots.values() for r in s.residents.values()]
        running = sorted([*running, *member.crossing], key=lambda r: -r.order)
        units = preempt.units
        for request in running[: max(1, len(running) - 1)]:
            if units <= 0:
                break
            units -= member.geometry.rows_for(request.length) * member.geometry.row_units
            _log.info("preempted request=%s model=%s why=%s", request.rid, member.model,
                      preempt.why)  # fmt: skip
            self._take_back(member, request)

    def _take_back(self, member: Member, request: Request) -> None:
        if request in member.crossing:
            cancel(member, request, self.rows)
            request.step(RequestEvent.SET_BACK)
            request.computed = 0
            member.counters.preempted += 1
            member.enqueue(request)
        else:
            member.preempting = True
            cancel(member, request, self.rows)
        self.wake()

    # Quotas

    def _note_holds(self, outcome: Round) -> None:
        """Members short of KV get their quotas looked at soon, the longest short one first."""
        short = {h.model for h in outcome.held if h.why in (Why.QUOTA, Why.NO_KV)}
        for model in short:
            member = self.members[model]
            if member.held_since is None:
                member.held_since = self._clock()
        delay = self.settings.adapt_after_hold_s if short else self.settings.adapt_every_s
        busy = short or not self.is_idle
        if busy and self._rebalance_due is None:
            loop = asyncio.get_running_loop()
            self._rebalance_due = loop.call_later(delay, self._rebalance)

    def _rebalance(self) -> None:
        if self._rebalance_due is not None:
            self._rebalance_due.cancel()
            self._rebalance_due = None
        now = self._clock()
        late = [(m.held_since, m.model) for m in self.members.values()
                if m.held_since is not None
                and now - m.held_since > self.settings.urgent_after_s]  # fmt: skip
        self.memory.rebalance(self.members.values(), urgent=min(late)[1] if late else None)
        for _, model in late:
            self._expel_oversized(self.members[model])
        self._notify()
        self.wake()

    def _expel_oversized(self, member: Member) -> None:
        """Fails requests that a smaller limit made impossible; they would wait for ever."""
        tokens = self.memory.kv_tokens(member, self.members.values())
        for request in member.requests:
            if not request.is_over and request.length > tokens:
                self._fail(member, request, PeerError(
                    f"request {request.rid}: {request.length} tokens, the KV limit of "
                    f"{member.model} became {tokens}"))  # fmt: skip

    # What keepers and streams tell

    def _next_epoch(self) -> int:
        self._epochs += 1
        return self._epochs

    async def _described(self, member: Member, description: EngineDescription) -> None:
        """The first host of a member brings its needs; its weights are then reserved."""
        if member.card is not None:
            await self._until_reserved(member)
            return
        member.card = description
        try:
            self.memory.claim(member, [m for m in self.members.values() if m is not member])
        except Exception:
            member.card = None
            raise
        self._rebalance()
        await self._until_reserved(member)

    async def _until_reserved(self, member: Member) -> None:
        """Waits for the units of its weights; lent KV comes back, by force after a moment."""
        begun = self._clock()
        while member.model in self.memory.claimed:
            spans = self.memory.try_reserve(member.model)
            if spans is not None:
                if self._on_reserved is not None:
                    self._on_reserved(spans)
                self._rebalance()
                return
            if self._clock() - begun > self.settings.reclaim_after_s:
                self._reclaim_borrowed()
            await asyncio.sleep(0.05)

    def _reclaim_borrowed(self) -> None:
        for m in self.members.values():
            over = m.units_used(self.allocator) - m.quota
            if m.card is not None and over > 0 and m.running:
                for request in sorted(m.requests, key=lambda r: -r.order)[:1]:
                    if request not in m.queue and not m.preempting:
                        self._take_back(m, request)

    def _opened(self, member: Member) -> None:
        ready = all(s.state in (HostState.READY, HostState.STEPPING) for s in member.slots.values())
        if ready and member.state is MemberState.STARTING:
            member.happen(MemberEvent.HOSTS_READY)
            member.reason, member.message = Reason.SERVING, ""
        self._notify()
        self.wake()

    def _gone(self, member: Member, requests: list[Request]) -> None:
        member.preempting = False
        for request in requests:
            if request.is_over:
                free_handoff(request, self.rows)
            else:
                set_back(member, request, max_crashes=self.settings.max_crashes)
        self._notify()
        self.wake()

    def _failed(self, member: Member, gave_up: GaveUp) -> None:
        """A host is not started again: the member fails, everything else goes on."""
        _log.error("member_failed model=%s reason=%s message=%s", member.model, gave_up.reason,
                   gave_up.message)  # fmt: skip
        if member.state not in (MemberState.FAILED, MemberState.STOPPED):
            member.happen(MemberEvent.GAVE_UP)
            member.reason, member.message = gave_up.reason, gave_up.message
            member.permanent = gave_up.permanent
        for request in member.requests:
            if not request.is_over:
                self._fail(member, request, PeerError(f"model {member.model}: {gave_up.message}"))
        self._notify()
        self._spawn(self._retire(member))

    async def _retire(self, member: Member) -> None:
        """Ends what is left of a member and gives its memory back."""
        await self._end_hosts(member)
        await self._starter.forget(member.model)
        self.memory.release(member.model)
        member.floor = member.limit = 0
        self._rebalance()

    async def _end_hosts(self, member: Member) -> None:
        for keeper in member.keepers:
            keeper.cancel()
        await asyncio.gather(*member.keepers, return_exceptions=True)

    def _cancel(self, request: Request) -> None:
        member = self.members.get(request.asked.model)
        if member is not None:
            cancel(member, request, self.rows)
            member.counters.cancelled += 1
        request.step(RequestEvent.CANCELLED)
        self.wake()

    def _fail(self, member: Member, request: Request, error: PeerError) -> None:
        cancel(member, request, self.rows)
        request.fail(error)
        member.counters.failed += 1
        self.wake()

    # Small things

    def _served(self, m: Member) -> ServedModel:
        return ServedModel(
            model=m.model, served_name=m.spec.served_name, path=m.spec.path, port=m.spec.port,
            max_model_len=m.max_model_len, vocab=m.description.vocab,
            kv_limit_tokens=self.memory.kv_tokens(m, self.members.values()),
            eos_token_ids=m.description.eos_token_ids, slo_ttft_s=m.spec.slo_ttft_s,
            slo_tpot_s=m.spec.slo_tpot_s,
        )  # fmt: skip

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.bugs += 1
            _log.error("scheduler_bug", exc_info=error)

    def _count_bug(self, error: InvariantError) -> None:
        self.bugs += 1
        _log.error("scheduler_bug %s", error)

    def _audit_idle(self) -> None:
        try:
            self.audit()
        except InvariantError as error:
            self._count_bug(error)

    def _notify(self) -> None:
        self.changed.set()
