"""What all replayed policies share: jobs on SM parts, rotation, prefills that wait for KV."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mux_core.adbs import (
    GrantDecision,
    Limits,
    MemberLoad,
    Preempt,
    PreemptWhy,
    Round,
    UnitLoad,
)
from mux_core.engine import Phase
from mux_core.quota import QuotaClaim
from mux_core.simulator.policies.sm_parts import SmParts
from mux_core.simulator.policy import Happening

OVERBOOKED: Final = Limits(sm_percent=200)
"""Two jobs may hold one part, so percents may sum to 200; `SmParts` is what bounds them."""


@dataclass(slots=True, kw_only=True)
class Replayed:
    """The released scheduler's books of one unit, without its choice of whom to launch.

    `blocked`: members whose prefill found no KV; a finished request frees them, all of them with
    `unblock_all`. `cut_short`: members whose decode step had to preempt; the step itself goes on.
    The pool is one: every member may hold all of it.
    """

    limits: Limits = OVERBOOKED
    unblock_all: bool = True
    parts: SmParts = field(default_factory=SmParts)
    blocked: set[str] = field(default_factory=set)
    cut_short: set[str] = field(default_factory=set)
    last: dict[Phase, str] = field(default_factory=dict)

    def happened(self, what: Happening, model: str) -> None:
        if what is Happening.FINISHED:
            self.blocked = set() if self.unblock_all else self.blocked - {model}

    def runs(self, phase: Phase) -> bool:
        """Whether any job of this phase is in flight."""
        return any(running is phase for _, running in self.parts.jobs)

    def harvest(self, load: UnitLoad) -> set[Phase]:
        """Frees the parts of ended jobs and answers of which phases they were."""
        idle = {(m.model, Phase.PREFILL): m.prefill_idle for m in load.members}
        idle |= {(m.model, Phase.DECODE): m.decode_idle for m in load.members}
        ended = [job for job in self.parts.jobs if idle.get(job, True)]
        for job in ended:
            self.parts.release(job)
        if not any(m.running for m in load.members):
            self.blocked.clear()  # nobody is left whose end could free them
        return {phase for _, phase in ended}

    def rotation(self, members: Sequence[MemberLoad], phase: Phase) -> list[MemberLoad]:
        """All members, beginning after the one launched last in this phase."""
        names = [m.model for m in members]
        last = self.last.get(phase)
        at = names.index(last) + 1 if last in names else 0
        return [*members[at:], *members[:at]]


class Launches:
    """The grants of one tick, taken from the books of a unit."""

    def __init__(self, books: Replayed, load: UnitLoad) -> None:
        self.books = books
        self.load = load
        self.free = load.free_units
        self.grants: list[GrantDecision] = []
        self.preempts: list[Preempt] = []

    def round(self) -> Round:
        return Round(grants=tuple(self.grants), held=(), preempts=tuple(self.preempts),
                     turn=self.load.turn)  # fmt: skip

    def wants_prefill(self, m: MemberLoad, cap: int) -> bool:
        """Has a queued request, a sequence to spare and no want of KV."""
        return bool(m.waiting) and m.running < cap and m.model not in self.books.blocked

    def prefill(self, m: MemberLoad, cap: int) -> bool:
        """Launches a prefill; without KV for all of it the member is blocked instead."""
        seats = min(cap - m.running, m.waiting)
        rows = m.batch_rows
        if seats < m.waiting:
            # Fewer requests than `batch_rows` counts: at most as many as those of mean length.
            rows = min(rows, max(m.head_rows, -(-m.batch_rows * seats // m.waiting)))
        if rows * m.row_units > self.free:
            if any(other.running for other in self.load.members):
                self.books.blocked.add(m.model)
                return False
            rows = self.free // m.row_units
        budget = min(m.waiting_tokens, self.books.limits.prefill_tokens)
        self._grant(m, Phase.PREFILL, budget, seats, rows)
        return True

    def resume(self) -> None:
        """Goes on with the steps that preempted, before anybody takes what they freed."""
        resumed, self.books.cut_short = self.books.cut_short, set()
        for m in self.load.members:
            if m.model in resumed and self.may_decode(m):
                self.decode(m)

    def waits_to_decode(self, m: MemberLoad) -> bool:
        """Has requests to decode and a free host, and was not launched in this tick."""
        taken = (m.model, Phase.DECODE) in self.books.parts.jobs
        return m.decode_idle and bool(m.decoding) and not taken

    def may_decode(self, m: MemberLoad) -> bool:
        return self.waits_to_decode(m) and self.fits(m, Phase.DECODE)

    def decode(self, m: MemberLoad) -> bool:
        """Launches a decode step; without KV for all of it the newest requests lose theirs."""
        missing = m.decode_rows * m.row_units - self.free
        if missing > 0:
            self.books.cut_short.add(m.model)
            self.preempts.append(Preempt(model=m.model, units=missing, why=PreemptWhy.OWN_GROWTH))
            return False
        self._grant(m, Phase.DECODE, m.decoding, m.decoding, m.decode_rows)
        return True

    def fits(self, m: MemberLoad, phase: Phase) -> bool:
        return self.books.parts.fits(_percent(m, phase))

    def _grant(self, m: MemberLoad, phase: Phase, budget: int, seqs: int, rows: int) -> None:
        percent = _percent(m, phase)
        self.books.parts.take((m.model, phase), percent)
        self.books.last[phase] = m.model
        self.free -= rows * m.row_units
        self.grants.append(GrantDecision(model=m.model, phase=phase, token_budget=budget,
                                         max_seqs=seqs, rows=rows, percent=percent))  # fmt: skip


def whole_pool(claims: Iterable[QuotaClaim], total: int) -> Mapping[str, int]:
    return {claim.model: total for claim in claims}


def _percent(m: MemberLoad, phase: Phase) -> int:
    return m.prefill_percent if phase is Phase.PREFILL else m.decode_percent
