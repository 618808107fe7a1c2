"""Rounds: look at all members, decide, start what was granted, take back what was lent.

A round is held whenever something changed: a request came or went, a step ended, a host opened.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from mux_core.adbs import GrantDecision, Preempt, Round, Turn, UnitLoad, Why, adbs_round
from mux_core.batching import covered, victims
from mux_core.engine import Grant, Phase, Row
from mux_core.errors import InvariantError, PeerError
from mux_core.lifecycle import HostEvent, HostState, RequestEvent
from mux_runtime.scheduler.durations import DECISION_EDGES, STEP_EDGES, Durations, Overlap
from mux_runtime.scheduler.hosts import HostSlot
from mux_runtime.scheduler.members import Member
from mux_runtime.scheduler.memory import UnitMemory
from mux_runtime.scheduler.requests import Request
from mux_runtime.scheduler.rows import Rows
from mux_runtime.scheduler.settings import Settings
from mux_runtime.scheduler.stepping import Stepper, cancel

_log = logging.getLogger(__name__)


class Rounds:
    """Holds the rounds of one unit over `members`, which others add to and take from.

    `changed` is set when a status would read differently. `broken` is set on a bug that leaves
    the scheduler in doubt of itself: whoever runs it must start anew.
    """

    def __init__(self, *, members: dict[str, Member], memory: UnitMemory, rows: Rows,
                 settings: Settings, clock: Callable[[], float]) -> None:  # fmt: skip
        self.members = members
        self.memory = memory
        self.rows = rows
        self.settings = settings
        self.allocator = rows.allocator
        self.changed = asyncio.Event()
        self.broken = asyncio.Event()
        self.bugs = 0
        self.decision_seconds = Durations(DECISION_EDGES)
        self.step_seconds = {phase: Durations(STEP_EDGES) for phase in Phase}
        self.overlap = Overlap(clock())
        self.holds: Counter[Why] = Counter()
        self._clock = clock
        self._turn = Turn()
        self._sm_in_use = 0
        self._wake_due = False
        self._audited = 0.0
        self._rebalance_due: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stepper = Stepper(rows=rows, settings=settings, clock=clock, on_bug=self.count_bug)

    async def close(self) -> None:
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

    def wake(self) -> None:
        """A round soon; many wishes make one."""
        if not self._wake_due:
            self._wake_due = True
            asyncio.get_running_loop().call_soon(self._hold_round)

    def _hold_round(self) -> None:
        self._wake_due = False
        try:
            self._round()
        except Exception as error:
            self._break(error)
            raise

    def _round(self) -> None:
        for member in self.members.values():
            if member.requests:
                member.empty.clear()
            else:
                member.empty.set()
            for slot in member.slots.values():
                if slot.aborts and slot.is_callable:
                    slot.happen(HostEvent.CALLED)
                    slot.call = self.spawn(self._clear(member, slot))
        live = [m for m in self.members.values() if m.card is not None]
        loads = tuple(
            m.load(self.settings.limits, m.units_used(self.allocator), self.rows.frees)
            for m in live
        )
        begun = time.perf_counter()
        outcome = adbs_round(
            UnitLoad(members=loads, free_units=self.memory.free_units,
                     sm_in_use=self._sm_in_use, turn=self._turn),
            self.settings.limits,
        )  # fmt: skip
        self.decision_seconds.observe(time.perf_counter() - begun)
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
        slot.call = self.spawn(self._step(member, slot, grant, decision.percent))

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
            member.lease_cap = self.rows.frees, rows * geometry.row_units
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
        for request in chosen[: covered(rows, leased)]:
            if request.rid not in slot.residents:
                member.queue.remove(request)
                request.admit(self._clock())
                slot.residents[request.rid] = slot.newcomers[request.rid] = request

    async def _step(self, member: Member, slot: HostSlot, grant: Grant, percent: int) -> None:
        begun = self._clock()
        self.overlap.begin(slot.phase, begun)
        try:
            await self._stepper.run(member, slot, grant)
        finally:
            ended = self._clock()
            self._sm_in_use -= percent
            self.step_seconds[slot.phase].observe(ended - begun)
            self.overlap.end(slot.phase, ended)
            self.wake()

    async def _clear(self, member: Member, slot: HostSlot) -> None:
        await self._stepper.clear(member, slot)
        self.wake()

    def _preempt(self, preempt: Preempt) -> None:
        """The youngest requests wait again until `units` are on their way back."""
        member = self.members[preempt.model]
        if member.is_giving_back:
            return
        running = [r for s in member.slots.values() for r in s.residents.values()]
        running = sorted([*running, *member.crossing], key=lambda r: -r.order)
        geometry = member.geometry
        for request in victims(running, preempt.units, row_units=geometry.row_units,
                               block_tokens=geometry.block_tokens):  # fmt: skip
            _log.info("preempted request=%s model=%s why=%s", request.rid, member.model,
                      preempt.why)  # fmt: skip
            self.take_back(member, request)

    def take_back(self, member: Member, request: Request) -> None:
        if request in member.crossing:
            cancel(member, request, self.rows)
            request.step(RequestEvent.SET_BACK)
            request.computed = 0
            member.counters.preempted += 1
            member.enqueue(request)
        else:
            cancel(member, request, self.rows)
        self.wake()

    def _note_holds(self, outcome: Round) -> None:
        """Members short of KV get their quotas looked at soon, the longest short one first."""
        short = outcome.short_of_kv
        for model in short:
            member = self.members[model]
            if member.held_since is None:
                member.held_since = self._clock()
        if short:
            self._rebalance_in(self.settings.adapt_after_hold_s)
        elif not self.is_idle:
            self._rebalance_in(self.settings.adapt_every_s)

    def _rebalance_in(self, delay_s: float) -> None:
        """At the latest so much later; an earlier date stands."""
        loop = asyncio.get_running_loop()
        if self._rebalance_due is not None:
            if self._rebalance_due.when() <= loop.time() + delay_s:
                return
            self._rebalance_due.cancel()
        self._rebalance_due = loop.call_later(delay_s, self.rebalance)

    def rebalance(self) -> None:
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
        self.changed.set()
        self.wake()

    def _expel_oversized(self, member: Member) -> None:
        """Fails requests that a smaller limit made impossible; they would wait for ever."""
        tokens = self.memory.kv_tokens(member, self.members.values())
        for request in member.requests:
            if not request.is_over and request.length > tokens:
                self.fail(member, request, PeerError(
                    f"request {request.rid}: {request.length} tokens, the KV limit of "
                    f"{member.model} became {tokens}"))  # fmt: skip

    def fail(self, member: Member, request: Request, error: PeerError) -> None:
        cancel(member, request, self.rows)
        request.fail(error)
        member.counters.failed += 1
        self.wake()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    def count_bug(self, error: InvariantError) -> None:
        self.bugs += 1
        _log.error("scheduler_bug %s", error)

    def _break(self, error: BaseException) -> None:
        self.bugs += 1
        _log.error("scheduler_broken", exc_info=error)
        self.broken.set()

    def _audit_idle(self) -> None:
        now = self._clock()
        if now - self._audited < self.settings.audit_every_s:
            return
        self._audited = now
        try:
            self.audit()
        except InvariantError as error:
            self.count_bug(error)
