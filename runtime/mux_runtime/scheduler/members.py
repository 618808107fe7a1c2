"""One LLM of the unit: its queue, its two hosts, its counters, its aggregates for a round."""

import asyncio
from bisect import insort
from dataclasses import dataclass, field

from mux_core.adbs import Limits, MemberLoad
from mux_core.batching import growing_rows, head_rows, is_at_edge, prefill_batch
from mux_core.engine import KVGeometry, Phase
from mux_core.errors import InvariantError
from mux_core.lifecycle import MEMBER, MemberEvent, MemberState, advance
from mux_core.reasons import Reason
from mux_core.tally import BUCKETS, bucket
from mux_core.unitspec import MemberSpec
from mux_runtime.engines.host import EngineDescription
from mux_runtime.kvpool.allocator import Allocator, Owner
from mux_runtime.openai import buckets
from mux_runtime.scheduler.durations import Durations
from mux_runtime.scheduler.hosts import HostSlot
from mux_runtime.scheduler.requests import Request


def _request_time() -> Durations:
    return Durations(buckets.REQUEST)


@dataclass(slots=True, kw_only=True)
class Counters:
    """Since this process started. `queued`, `prefilled`, `decoded`: of the finished requests, the
    time to the first grant, from there to the first token, from there to the last one.
    `ttft_counts`, `tpot_counts`: how many by the edges of `mux_core.tally`."""

    arrivals: int = 0
    finished: int = 0
    rejected: int = 0
    cancelled: int = 0
    failed: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    ttft_s: float = 0.0
    ttft_count: int = 0
    tpot_s: float = 0.0
    tpot_count: int = 0
    ttft_counts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    tpot_counts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    queued: Durations = field(default_factory=_request_time)
    prefilled: Durations = field(default_factory=_request_time)
    decoded: Durations = field(default_factory=_request_time)
    grants: dict[Phase, int] = field(default_factory=lambda: dict.fromkeys(Phase, 0))

    def count_finished(self, request: Request) -> None:
        self.finished += 1
        self.prompt_tokens += len(request.asked.prompt)
        self.generated_tokens += len(request.emitted)
        ttft_s = request.first_token - request.arrived
        self.ttft_s += ttft_s
        self.ttft_count += 1
        self.ttft_counts[bucket(ttft_s)] += 1
        self.queued.observe(request.granted - request.arrived)
        self.prefilled.observe(request.first_token - request.granted)
        self.decoded.observe(request.last_token - request.first_token)
        if len(request.emitted) > 1:
            span = request.last_token - request.first_token
            tpot_s = span / (len(request.emitted) - 1)
            self.tpot_s += tpot_s
            self.tpot_count += 1
            self.tpot_counts[bucket(tpot_s)] += 1


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """A member and all its requests. `crossing`: those whose rows wait for the decode host.

    `held_since`: since when nothing of it ran for lack of KV. `lease_cap`: units it can get, the
    free ones lying in pieces too small for it, until the count of frees changes. `empty` is set
    while it has no request.
    """

    spec: MemberSpec
    slots: dict[Phase, HostSlot]
    card: EngineDescription | None = None
    state: MemberState = MemberState.STARTING
    reason: Reason = Reason.STARTING
    message: str = ""
    permanent: bool = False
    floor: int = 0
    limit: int = 0
    quota: int = 0
    queue: list[Request] = field(default_factory=list)
    crossing: list[Request] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    keepers: list[asyncio.Task[None]] = field(default_factory=list)
    held_since: float | None = None
    lease_cap: tuple[int, int] | None = None
    empty: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def model(self) -> str:
        return self.spec.model

    @property
    def description(self) -> EngineDescription:
        """What its checkpoint needs; known before anything of it is queued."""
        if self.card is None:
            raise InvariantError(f"member {self.model}: used before a host described it")
        return self.card

    @property
    def geometry(self) -> KVGeometry:
        return self.description.geometry

    @property
    def prefill(self) -> HostSlot:
        return self.slots[Phase.PREFILL]

    @property
    def decode(self) -> HostSlot:
        return self.slots[Phase.DECODE]

    @property
    def between(self) -> Owner:
        """Owner of rows on their way from one host to the other."""
        return Owner(self.model, 0)

    @property
    def is_giving_back(self) -> bool:
        """Whether rows of its requests are on their way back already."""
        return bool(self.prefill.aborts or self.decode.aborts)

    @property
    def max_model_len(self) -> int:
        asked = self.spec.max_model_len
        own = self.description.max_model_len
        return own if asked is None else min(asked, own)

    @property
    def running(self) -> int:
        return len(self.prefill.residents) + len(self.crossing) + len(self.decode.residents)

    def units_used(self, allocator: Allocator) -> int:
        """Units its requests hold, leases in flight included."""
        owners = {self.between, self.prefill.owner, self.decode.owner}
        return sum(allocator.used(owner) for owner in owners)

    @property
    def requests(self) -> list[Request]:
        return [*self.queue, *self.prefill.residents.values(), *self.crossing,
                *self.decode.residents.values()]  # fmt: skip

    def happen(self, event: MemberEvent) -> None:
        self.state = advance(MEMBER, self.state, event, role=f"member {self.model}")

    def enqueue(self, request: Request) -> None:
        insort(self.queue, request, key=lambda r: r.order)

    def batch(self, limits: Limits) -> tuple[list[Request], list[int]]:
        """Requests of the next prefill step in order, and the rows each needs in it."""
        residents = sorted(self.prefill.residents.values(), key=lambda r: r.order)
        return prefill_batch(residents, self.queue, limits=limits, running=self.running,
                             block_tokens=self.geometry.block_tokens)  # fmt: skip

    def head_rows(self, chosen: list[Request], rows: list[int]) -> int:
        """Rows without which the first of the batch is not worth starting."""
        first = chosen[0]
        return head_rows(
            rows[0], first, resident=first.rid in self.prefill.residents,
            starved_rows=self.prefill.starved_rows, block_tokens=self.geometry.block_tokens,
        )  # fmt: skip

    def growing_rows(self) -> int:
        """Rows with which every decoding request can write its last token's K and V."""
        block = self.geometry.block_tokens
        decoding = [*self.decode.residents.values(), *self.crossing]
        at_edge = sum(is_at_edge(request.length, block) for request in decoding)
        return growing_rows(at_edge, len(decoding), self.decode.starved_rows)

    def _leasable(self, frees: int) -> int | None:
        if self.lease_cap is None or self.lease_cap[0] != frees:
            return None
        return self.lease_cap[1]

    def load(self, limits: Limits, used: int, frees: int = 0) -> MemberLoad:
        """This member's part of the snapshot of a round; `used` in units."""
        chosen, rows = self.batch(limits)
        decoding = len(self.decode.residents) + len(self.crossing)
        return MemberLoad(
            model=self.model,
            prefill_percent=self.spec.prefill_percent,
            decode_percent=self.spec.decode_percent,
            prefill_idle=self.prefill.is_idle,
            decode_idle=self.decode.is_idle,
            waiting=len(chosen),
            waiting_tokens=sum(request.length - request.computed for request in chosen),
            head_rows=self.head_rows(chosen, rows) if chosen else 0,
            batch_rows=max(sum(rows), self.prefill.starved_rows) if chosen else 0,
            decoding=decoding,
            decode_rows=self.growing_rows(),
            running=self.running,
            row_units=self.geometry.row_units,
            floor=self.floor,
            quota=self.quota,
            used=used,
            leasable=self._leasable(frees),
            priority=self.spec.priority,
        )
