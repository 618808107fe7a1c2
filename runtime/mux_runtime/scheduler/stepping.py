"""One granted step on one host, from its calls to the ledger and the streams.

Everything that awaits a host is here. A host that dies, hangs or breaks the ledger is marked
lost; its keeper then takes back its rows and sets its requests back.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from mux_core.engine import Finish, Grant, KVHandoff, Output, Phase, StepResult
from mux_core.errors import InvariantError, PeerError
from mux_core.lifecycle import HostEvent, RequestEvent, RequestState
from mux_runtime.generation import RequestRefused
from mux_runtime.scheduler.hosts import HostSlot
from mux_runtime.scheduler.links import Host
from mux_runtime.scheduler.members import Member
from mux_runtime.scheduler.requests import Request
from mux_runtime.scheduler.rows import Rows
from mux_runtime.scheduler.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepper:
    """Runs what a round granted. `clock` is monotonic, in seconds; `on_bug` counts our bugs."""

    rows: Rows
    settings: Settings
    clock: Callable[[], float]
    on_bug: Callable[[InvariantError], None]

    async def run(self, member: Member, slot: HostSlot, grant: Grant) -> None:
        """One step. The slot is Stepping when called and Ready, or lost, afterwards."""
        host = slot.host
        assert host is not None
        try:
            async with asyncio.timeout(self._patience(slot)):
                await self._add_newcomers(member, slot, host)
                begun = self.clock()
                result = await host.step(grant)
            slot.pace_ms += 0.2 * ((self.clock() - begun) * 1000 - slot.pace_ms)
            self.rows.settle(slot, member.geometry, result)
            self._apply(member, slot, result)
        except (PeerError, TimeoutError, InvariantError) as error:
            self._lose(slot, host, error)
            return
        slot.happen(HostEvent.ANSWERED)

    async def clear(self, member: Member, slot: HostSlot) -> None:
        """Takes cancelled and preempted requests from an idle host."""
        host = slot.host
        assert host is not None
        try:
            async with asyncio.timeout(self._patience(slot)):
                while slot.aborts:
                    handoff = await host.abort(slot.aborts[0])
                    if handoff is not None:
                        self.rows.withdraw(slot, handoff)
                    self._return(member, slot, slot.aborts.pop(0))
        except (PeerError, TimeoutError, InvariantError) as error:
            self._lose(slot, host, error)
            return
        slot.happen(HostEvent.ANSWERED)

    def _patience(self, slot: HostSlot) -> float:
        expected_s = slot.pace_ms / 1000
        return max(self.settings.hang_floor_s, self.settings.hang_factor * expected_s)

    def _lose(self, slot: HostSlot, host: Host, error: Exception) -> None:
        if isinstance(error, InvariantError):
            self.on_bug(error)
        elif isinstance(error, TimeoutError):
            _log.error("host_hung model=%s phase=%s step=%d limit_s=%.1f",
                       slot.model, slot.phase, slot.steps, self._patience(slot))  # fmt: skip
        slot.happen(HostEvent.DIED)
        host.lost.set()

    async def _add_newcomers(self, member: Member, slot: HostSlot, host: Host) -> None:
        """Gives the host the requests of this step that it does not have yet."""
        newcomers = sorted(slot.newcomers.values(), key=lambda r: r.order)
        for request in newcomers:
            kv = request.handoff
            if request.is_over:
                slot.newcomers.pop(request.rid)
                self._drop(member, slot, request)
                continue
            try:
                await host.add(request.rid, request.tokens, request.asked.sampling,
                               prompt_len=len(request.asked.prompt), kv=kv,
                               detach=slot.phase is Phase.PREFILL)  # fmt: skip
            except RequestRefused as error:
                self._refused(member, slot, request, error)
                continue
            finally:
                slot.newcomers.pop(request.rid, None)
            if kv is not None:
                self.rows.adopt(slot, kv)
                request.handoff = None
                if not request.is_over:
                    request.step(RequestEvent.ADOPTED)

    def _refused(
        self, member: Member, slot: HostSlot, request: Request, error: RequestRefused
    ) -> None:
        self._drop(member, slot, request)
        if not request.is_over:
            request.fail(error)
            member.counters.failed += 1

    def _drop(self, member: Member, slot: HostSlot, request: Request) -> None:
        """Forgets a request the process does not have."""
        slot.residents.pop(request.rid, None)
        if request.rid in slot.aborts:
            slot.aborts.remove(request.rid)
        free_handoff(request, self.rows)

    def _return(self, member: Member, slot: HostSlot, rid: str) -> None:
        """An aborted request is off the host: gone if it is over, else it waits again."""
        request = slot.residents.pop(rid, None)
        if request is None or request.is_over:
            return
        request.step(RequestEvent.SET_BACK)
        request.computed = 0
        member.counters.preempted += 1
        member.enqueue(request)

    def _apply(self, member: Member, slot: HostSlot, result: StepResult) -> None:
        slot.starved_rows = result.need_rows if result.starved else 0
        if slot.phase is Phase.PREFILL:
            _count_computed(slot, result.prefill_tokens)
        for output in result.outputs:
            request = slot.residents.get(output.rid)
            if request is None:
                raise InvariantError(f"{slot.phase} host of {member.model}: output of unknown "
                                     f"request {output.rid}")  # fmt: skip
            handoff = result.handoffs.get(output.rid)
            self._deliver(member, slot, request, output, handoff)

    def _deliver(self, member: Member, slot: HostSlot, request: Request, output: Output,
                 handoff: KVHandoff | None) -> None:  # fmt: skip
        if output.finish is not None:
            del slot.residents[request.rid]
            if request.rid in slot.aborts:
                slot.aborts.remove(request.rid)
        crosses = output.finish is Finish.HANDOFF and not request.is_over
        if handoff is not None and not crosses:
            self.rows.abandon(handoff)
        if request.is_over:
            return
        request.emit(replace(output, finish=None) if crosses else output, self.clock())
        if crosses:
            assert handoff is not None
            request.handoff = handoff
            request.step(RequestEvent.HANDED_OFF)
            member.crossing.append(request)
        elif output.finish is not None:
            request.step(RequestEvent.FINISHED)
            member.counters.count_finished(request)


def cancel(member: Member, request: Request, rows: Rows) -> None:
    """Frees what a request holds now, or has its host free it at its next idle moment."""
    if request in member.crossing:
        member.crossing.remove(request)
        free_handoff(request, rows)
    elif request.state is RequestState.QUEUED and request in member.queue:
        member.queue.remove(request)
    else:
        for slot in member.slots.values():
            if request.rid in slot.residents and request.rid not in slot.aborts:
                slot.aborts.append(request.rid)


def free_handoff(request: Request, rows: Rows) -> None:
    if request.handoff is not None:
        rows.abandon(request.handoff)
        request.handoff = None


def _count_computed(slot: HostSlot, tokens: int) -> None:
    """Spreads prefilled tokens over the host's requests, which it runs in order."""
    for request in sorted(slot.residents.values(), key=lambda r: r.order):
        part = min(tokens, request.length - request.computed)
        request.computed += part
        tokens -= part
