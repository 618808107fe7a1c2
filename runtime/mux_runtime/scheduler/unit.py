"""The unit scheduler: takes requests, brings members up and down, keeps their hosts alive."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from mux_core.engine import Phase
from mux_core.errors import CapacityError, PeerError
from mux_core.lifecycle import HostState, MemberEvent, MemberState, RequestEvent
from mux_core.reasons import Reason
from mux_core.unitspec import MemberSpec
from mux_runtime.engines.host import EngineDescription
from mux_runtime.generation import GenerationRequest, RequestRefused, ServedModel
from mux_runtime.kvpool.allocator import Allocator, Span
from mux_runtime.scheduler.admission import check_queue, check_request, check_serving
from mux_runtime.scheduler.hosts import HostSlot
from mux_runtime.scheduler.keeping import GaveUp, HostKeeper, set_back
from mux_runtime.scheduler.links import HostStarter
from mux_runtime.scheduler.members import Member
from mux_runtime.scheduler.memory import UnitMemory
from mux_runtime.scheduler.requests import OutputStream, Request
from mux_runtime.scheduler.rounds import Rounds
from mux_runtime.scheduler.rows import Rows
from mux_runtime.scheduler.settings import Settings
from mux_runtime.scheduler.stepping import cancel, free_handoff

_log = logging.getLogger(__name__)


class UnitScheduler:
    """All members of one unit on one allocator. Lives in one event loop; nothing blocks it."""

    def __init__(self, *, allocator: Allocator, starter: HostStarter, unit_bytes: int,
                 settings: Settings | None = None,
                 on_reserved: Callable[[Sequence[Span]], None] | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self.allocator = allocator
        self.settings = settings or Settings()
        self.members: dict[str, Member] = {}
        self.memory = UnitMemory(allocator=allocator, unit_bytes=unit_bytes)
        self.rows = Rows(allocator)
        self.rounds = Rounds(members=self.members, memory=self.memory, rows=self.rows,
                             settings=self.settings, clock=clock)  # fmt: skip
        self._on_reserved = on_reserved
        self._starter = starter
        self._clock = clock
        self._orders = 0
        self._epochs = 0
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
        self.rounds.wake()
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
        self.rounds.changed.set()
        return member

    def resize_member(self, spec: MemberSpec) -> None:
        """Gives a running member new shares, quotas and names; its requests go on."""
        member = self.members[spec.model]
        member.spec = spec
        member.prefill.percent, member.decode.percent = spec.prefill_percent, spec.decode_percent
        self.memory.size(member, spec)
        self.rounds.rebalance()

    async def drain_member(self, model: str, timeout_s: float) -> int:
        """Refuses new requests and waits for the running ones; how many had to be cut."""
        member = self.members[model]
        if member.state not in (MemberState.DRAINING, MemberState.STOPPED):
            member.happen(MemberEvent.DRAIN)
            member.reason, member.message = Reason.DRAINING, "running requests finish"
            self.rounds.changed.set()
        self.rounds.wake()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(member.empty.wait(), timeout_s)
        left = [request for request in member.requests if not request.is_over]
        cut = PeerError(f"model {model}: drained for {timeout_s:.0f} s; the request was cut")
        for request in left:
            self.rounds.fail(member, request, cut)
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
        self.rounds.rebalance()
        return cut

    async def close(self) -> None:
        """Ends everything at once; requests still running are cut."""
        for member in list(self.members.values()):
            for request in member.requests:
                if not request.is_over:
                    request.fail(PeerError(f"model {member.model}: the unit stops"))
        await asyncio.gather(*(self._end_hosts(m) for m in self.members.values()))
        await self.rounds.close()

    @property
    def is_idle(self) -> bool:
        """Nothing queued, nothing running, no call under way."""
        return self.rounds.is_idle

    def audit(self) -> None:
        """Raises InvariantError unless free + owned + reserved = all, and idle means unowned."""
        self.rounds.audit()

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
        self.rounds.rebalance()
        await self._until_reserved(member)

    async def _until_reserved(self, member: Member) -> None:
        """Waits for the units of its weights; lent KV comes back, by force after a moment."""
        begun = self._clock()
        while member.model in self.memory.claimed:
            spans = self.memory.try_reserve(member.model)
            if spans is not None:
                if self._on_reserved is not None:
                    self._on_reserved(spans)
                self.rounds.rebalance()
                return
            if self._clock() - begun > self.settings.reclaim_after_s:
                self._reclaim_borrowed()
            await asyncio.sleep(0.05)

    def _reclaim_borrowed(self) -> None:
        for m in self.members.values():
            over = m.units_used(self.allocator) - m.quota
            if m.card is not None and over > 0 and m.running:
                for request in sorted(m.requests, key=lambda r: -r.order)[:1]:
                    if request not in m.queue and not m.is_giving_back:
                        self.rounds.take_back(m, request)

    def _opened(self, member: Member) -> None:
        ready = all(s.state in (HostState.READY, HostState.STEPPING) for s in member.slots.values())
        if ready and member.state is MemberState.STARTING:
            member.happen(MemberEvent.HOSTS_READY)
            member.reason, member.message = Reason.SERVING, ""
        self.rounds.changed.set()
        self.rounds.wake()

    def _gone(self, member: Member, requests: list[Request]) -> None:
        for request in requests:
            if request.is_over:
                free_handoff(request, self.rows)
            else:
                set_back(member, request, max_crashes=self.settings.max_crashes)
        self.rounds.changed.set()
        self.rounds.wake()

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
                self.rounds.fail(
                    member, request, PeerError(f"model {member.model}: {gave_up.message}")
                )
        self.rounds.changed.set()
        self.rounds.spawn(self._retire(member))

    async def _retire(self, member: Member) -> None:
        """Ends what is left of a member and gives its memory back."""
        await self._end_hosts(member)
        await self._starter.forget(member.model)
        self.memory.release(member.model)
        member.floor = member.limit = 0
        self.rounds.rebalance()

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
        self.rounds.wake()

    # Small things

    def _served(self, m: Member) -> ServedModel:
        return ServedModel(
            model=m.model, served_name=m.spec.served_name, path=m.spec.path, port=m.spec.port,
            max_model_len=m.max_model_len, vocab=m.description.vocab,
            kv_limit_tokens=self.memory.kv_tokens(m, self.members.values()),
            eos_token_ids=m.description.eos_token_ids, slo_ttft_s=m.spec.slo_ttft_s,
            slo_tpot_s=m.spec.slo_tpot_s,
        )  # fmt: skip
