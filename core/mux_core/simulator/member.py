"""One LLM in a simulated unit: its queue, its two hosts, its aggregates for a round."""

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from math import nan

from mux_core.adbs import Limits, MemberLoad
from mux_core.batching import growing_rows, head_rows, prefill_batch, wanted_rows
from mux_core.engine import Phase
from mux_core.placement import Member
from mux_core.quota import QuotaClaim, claim_weight
from mux_core.simulator.engine import Engine, Sequence
from mux_core.simulator.kv import RowLayout
from mux_core.simulator.policy import Queue
from mux_core.simulator.times import StepTimes


@dataclass(slots=True, eq=False)
class Visit(Sequence):
    """A request on its way through the system. `index`: its line in the log of its LLM."""

    index: int = 0
    arrived: float = 0.0
    first: float = nan
    keeps_output: bool = True


@dataclass(slots=True, kw_only=True)
class Meter:
    """What a member's unit saw of it in the window. `kv_area`: rows held, times seconds."""

    kv_area: float = 0.0
    kv_most: int = 0
    busy_s: float = 0.0
    steps: dict[Phase, int] = field(default_factory=lambda: dict.fromkeys(Phase, 0))
    decoded: int = 0
    preempted: int = 0
    kv_samples: list[tuple[float, float]] = field(default_factory=list)
    batch_samples: list[tuple[float, float]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Host:
    """One (member, phase). `leased`, `sms`: rows and percent of the step in flight. `aborts` wait
    for its end."""

    engine: Engine[Visit]
    percent: int
    busy: bool = False
    leased: int = 0
    sms: int = 0
    starved_rows: int = 0
    bus: float = 0.0
    aborts: list[Visit] = field(default_factory=list)

    @property
    def is_idle(self) -> bool:
        return not self.busy and not self.aborts


class SimMember:
    """Numbers and calendars of one replica; whoever changes them calls `changed`.

    `arriving`: requests on their way into the queue, which takes time on a CPU.
    """

    def __init__(self, plan: Member, times: StepTimes, layout: RowLayout, view: Queue, *,
                 priority: int = 0) -> None:  # fmt: skip
        self.plan = plan
        self.model = plan.model
        self.times = times
        self.layout = layout
        self.block = layout.block_tokens
        self.prefill = Host(engine=Engine(self.block), percent=plan.share.prefill)
        self.decode = Host(engine=Engine(self.block), percent=plan.share.decode)
        self.queue: deque[Visit] = deque()
        self.crossing: dict[Visit, None] = {}
        self.crossing_rows = 0
        self.crossing_edges = 0
        self.floor = self.limit = self.quota = 0
        self.arriving = 0
        self.held_since: float | None = None
        self.draining = False
        self.meter = Meter()
        self.metered_at = 0.0
        self.priority = priority
        self._view = view
        self._load: MemberLoad | None = None

    def host(self, phase: Phase) -> Host:
        return self.prefill if phase is Phase.PREFILL else self.decode

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.prefill, self.decode

    @property
    def running(self) -> int:
        """Requests that hold rows."""
        return len(self.prefill.engine.prefilling) + len(self.crossing) + self.decoding

    @property
    def decoding(self) -> int:
        """Requests on the decode host."""
        return len(self.decode.engine.decoding)

    @property
    def visits(self) -> list[Visit]:
        """Requests that hold rows."""
        return [*self.prefill.engine.prefilling, *self.crossing, *self.decode.engine.decoding]

    @property
    def is_empty(self) -> bool:
        return not self.queue and not self.running and not self.arriving

    @property
    def used_rows(self) -> int:
        """Rows its requests hold, leases in flight included."""
        return (self.prefill.engine.rows + self.prefill.leased + self.crossing_rows
                + self.decode.engine.rows + self.decode.leased)  # fmt: skip

    @property
    def used(self) -> int:
        return self.used_rows * self.layout.row_units

    @property
    def is_giving_back(self) -> bool:
        return bool(self.prefill.aborts or self.decode.aborts)

    def changed(self) -> None:
        self._load = None

    def enqueue(self, visit: Visit) -> None:
        """Puts a request where its arrival belongs."""
        if self.queue and self.queue[-1].order > visit.order:
            waiting = list(self.queue)
            insort(waiting, visit, key=lambda v: v.order)
            self.queue = deque(waiting)
        else:
            self.queue.append(visit)
        self._load = None

    def cross(self, visit: Visit) -> None:
        """A prefilled request and its rows leave the prefill host."""
        self.crossing[visit] = None
        self.crossing_rows += self.prefill.engine.remove(visit)
        self.crossing_edges += (visit.length - 1) % self.block == 0

    def uncross(self, visit: Visit) -> int:
        """A crossing request is taken away; its rows."""
        del self.crossing[visit]
        rows = -(-visit.computed // self.block)
        self.crossing_rows -= rows
        self.crossing_edges -= (visit.length - 1) % self.block == 0
        return rows

    def land(self) -> None:
        """The decode host adopts all that cross."""
        for visit in self.crossing:
            self.decode.engine.add(visit)
        self.crossing.clear()
        self.crossing_rows = self.crossing_edges = 0

    def batch(self, limits: Limits) -> tuple[list[Visit], list[int]]:
        """Requests of the next prefill step in order, and the rows each needs in it."""
        return prefill_batch(self.prefill.engine.prefilling, self.queue, limits=limits,
                             running=self.running, block_tokens=self.block)  # fmt: skip

    def growing(self) -> int:
        """Rows with which every decoding request can write its last token's K and V."""
        engine = self.decode.engine
        at_edge = len(engine.at_edge) + self.crossing_edges
        decoding = len(engine.decoding) + len(self.crossing)
        return growing_rows(at_edge, decoding, self.decode.starved_rows)

    def load(self, limits: Limits) -> MemberLoad:
        """This member's part of the snapshot of a round."""
        if self._load is None:
            self._load = self._make_load(limits)
        return self._load

    def view(self) -> Queue:
        oldest = self.queue[0].arrived if self.queue else None
        if oldest != self._view.oldest:
            known = self._view
            self._view = Queue(oldest, known.rate, known.prompt_tokens, known.output_tokens)
        return self._view

    def claim(self) -> QuotaClaim:
        """What it asks of the quotas."""
        wanted = wanted_rows(self.growing(), self.decoding, self.queue,
                             self.prefill.engine.prefilling, block_tokens=self.block)  # fmt: skip
        return QuotaClaim(
            model=self.model, floor=self.floor, limit=max(self.limit, self.floor), used=self.used,
            wanted=wanted * self.layout.row_units,
            weight=claim_weight(self.plan.rate, units_per_token=self.layout.row_units / self.block),
        )  # fmt: skip

    def _make_load(self, limits: Limits) -> MemberLoad:
        prefill, decode = self.prefill, self.decode
        decoding = len(decode.engine.decoding) + len(self.crossing)
        waiting = waiting_tokens = head = most = 0
        if self.queue or prefill.engine.prefilling:
            chosen, rows = self.batch(limits)
            if chosen:
                waiting = len(chosen)
                waiting_tokens = sum(v.length - v.computed for v in chosen)
                starved = prefill.starved_rows
                head = head_rows(rows[0], chosen[0], starved_rows=starved,
                                 resident=chosen[0] in prefill.engine.prefilling,
                                 block_tokens=self.block)  # fmt: skip
                most = max(sum(rows), starved)
        return MemberLoad(
            model=self.model,
            prefill_percent=prefill.percent,
            decode_percent=decode.percent,
            prefill_idle=prefill.is_idle,
            decode_idle=decode.is_idle,
            waiting=waiting,
            waiting_tokens=waiting_tokens,
            head_rows=head,
            batch_rows=most,
            decoding=decoding,
            decode_rows=self.growing() if decoding else 0,
            running=len(prefill.engine.prefilling) + decoding,
            row_units=self.layout.row_units,
            floor=self.floor,
            quota=self.quota,
            used=self.used,
            priority=self.priority,
        )
