"""The life of one engine host after the other in one slot: start, serve, lose, reclaim, again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mux_core.errors import MuxError, PeerError, SpecError, UnsupportedModel
from mux_core.lifecycle import HostEvent, HostState, RequestEvent, RequestState
from mux_core.reasons import Reason
from mux_runtime.engines.host import EngineDescription, UnsupportedVersion
from mux_runtime.scheduler.hosts import HostSlot
from mux_runtime.scheduler.links import HostOrder, HostStarter
from mux_runtime.scheduler.members import Member
from mux_runtime.scheduler.requests import Request
from mux_runtime.scheduler.rows import Rows
from mux_runtime.scheduler.settings import Settings
from mux_runtime.sm.shares import ShareNotVerified

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """Why a member's host is not started again."""

    reason: Reason
    message: str
    permanent: bool


class DoesNotFit(SpecError):
    """The member's weights, or one row of its KV, cannot be had beside the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKeeper:
    """Keeps hosts alive. `next_epoch` counts for the whole unit; the `on_...` are the
    scheduler's: `on_described` reserves memory before weights are loaded, or refuses."""

    starter: HostStarter
    rows: Rows
    settings: Settings
    next_epoch: Callable[[], int]
    on_described: Callable[[Member, EngineDescription], Awaitable[None]]
    on_open: Callable[[Member], None]
    on_gone: Callable[[Member, list[Request]], None]
    on_failed: Callable[[Member, GaveUp], None]

    async def keep(self, member: Member, slot: HostSlot) -> None:
        """Runs until cancelled or given up; the process is gone in both cases."""
        failures = 0
        while True:
            slot.epoch, slot.started_percent = self.next_epoch(), slot.percent
            order = HostOrder(model=slot.model, phase=slot.phase, epoch=slot.epoch,
                              percent=slot.percent)  # fmt: skip
            opened_at = asyncio.get_running_loop().time()
            try:
                failure = await self._live(member, slot, order)
            except SpecError as error:
                self._forget(member, slot)
                self.on_failed(member, _permanent(error))
                return
            except asyncio.CancelledError:
                await self._end(member, slot, order)
                slot.happen(HostEvent.STOPPED)
                raise
            self._forget(member, slot)
            stable = asyncio.get_running_loop().time() - opened_at > self.settings.stable_s
            failures = 1 if stable else failures + 1
            _log.warning("host_lost model=%s phase=%s epoch=%d failures=%d cause=%s",
                         slot.model, slot.phase, slot.epoch, failures, failure)  # fmt: skip
            if failures > self.settings.tries:
                text = (f"{slot.phase} host of {slot.model} ended {failures} times in a row; "
                        f"last: {failure}")  # fmt: skip
                self.on_failed(
                    member, GaveUp(reason=Reason.ENGINE_CRASHED, message=text, permanent=False)
                )
                return
            await self._pause(slot, failures)

    async def _live(self, member: Member, slot: HostSlot, order: HostOrder) -> str:
        """One process from start to end; answers why it ended."""
        try:
            host = await self.starter.start(order)
            await self.on_described(member, await host.describe())
            await host.open()
        except SpecError:
            slot.happen(HostEvent.DIED)
            await self.starter.end(order)
            raise
        except MuxError as error:
            slot.happen(HostEvent.DIED)
            await self.starter.end(order)
            return str(error)
        slot.opened(host)
        self.rows.open(slot, member.geometry)
        self.on_open(member)
        await host.lost.wait()
        await self.starter.end(order)
        # Its last answer may have been under way; only after it is the ledger final.
        await slot.quiet()
        if slot.state is not HostState.FAILED:
            slot.happen(HostEvent.DIED)
        return host.ending or "it was ended: hung, or out of step with its ledger"

    async def _pause(self, slot: HostSlot, failures: int) -> None:
        try:
            await asyncio.sleep(self.settings.backoff_s * 2 ** (failures - 1))
        except asyncio.CancelledError:
            slot.happen(HostEvent.STOPPED)
            raise
        slot.restarts += 1
        slot.happen(HostEvent.RESTARTED)

    async def _end(self, member: Member, slot: HostSlot, order: HostOrder) -> None:
        await asyncio.shield(self.starter.end(order))
        await slot.quiet()
        self._forget(member, slot)

    def _forget(self, member: Member, slot: HostSlot) -> None:
        """Takes back every row of a dead host, its lease in flight included, and its requests."""
        self.rows.close(slot)
        self.on_gone(member, slot.emptied())


def set_back(member: Member, request: Request, *, max_crashes: int) -> None:
    """A request whose host is gone waits again; its emitted tokens stand.

    Rows that no host had accepted are still good: then only the decode host is asked again.
    """
    if request.is_over:
        return
    request.crashes += 1
    if request.handoff is not None:
        member.crossing.append(request)
        return
    if request.crashes >= max_crashes:
        request.fail(PeerError(
            f"request {request.rid}: {request.crashes} engine hosts of {member.model} ended "
            "while they ran it; it is not tried again"))  # fmt: skip
        return
    if request.state is not RequestState.QUEUED:
        request.step(RequestEvent.SET_BACK)
    request.computed = 0
    member.enqueue(request)


def _permanent(error: SpecError) -> GaveUp:
    match error:
        case UnsupportedModel():
            reason = Reason.UNSUPPORTED_MODEL
        case UnsupportedVersion():
            reason = Reason.UNSUPPORTED_VERSION
        case DoesNotFit():
            reason = Reason.DOES_NOT_FIT
        case ShareNotVerified():
            reason = error.reason
        case _:
            reason = Reason.CORRUPT_CHECKPOINT
    return GaveUp(reason=reason, message=str(error), permanent=True)
