"""The ADBS round: which engine hosts may run one step now, and why the others may not.

A pure function on a frozen snapshot: no clock, no I/O, no randomness. The unit scheduler calls it
on every event and the simulator on a virtual clock. It works on aggregates per member, so that a
decision costs O(members), however many requests there are.

One round, in order:

1. *Debt.* Decodes that prefills passed over for too long (`owed`) come first.
2. *Prefill.* Round-robin over members. The first one that is ready but lacks SMs reserves them:
   nothing else starts, so it starts as soon as the steps in flight end.
3. *Decode.* Only if no prefill reserves: round-robin over members with what is left.

Round-robin is by cycle: a member granted in this cycle waits until every other ready member had
its turn. Inside a cycle a higher priority goes first, so priority orders but never starves.

Bounds (`decode_bound`, `prefill_bound`), for a member whose host is idle and whose rows can be
had, N members, K = `prefill_turns`: its decode is granted after at most K + 3N grants to others,
its prefill after at most 2N + N * (ceil(2N / K) + 1). A grant is one step, so neither waits
without limit. With `Limits.max_prefills` a prefill waits for at most N others, however many decodes
are granted meanwhile. Every round with no step in flight grants something if anything is ready.

KV is counted in head units. A member may hold `quota` units; `floor` of them are guaranteed.
Taking units above one's floor never touches what others lack to theirs. Sum of quotas <= total
(`mux_core.quota`), so a member inside its quota that finds no units has found another one beyond
its own; that one gets no lease, and after `reclaim_rounds` loses its youngest requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from mux_core.engine import Phase


class Why(StrEnum):
    """Why a phase with work was held."""

    HOST_BUSY = "HostBusy"
    NO_SMS = "NoSms"
    RESERVED_FOR_PREFILL = "ReservedForPrefill"
    RESERVED_FOR_DECODE = "ReservedForDecode"
    CYCLE = "OthersFirst"
    QUOTA = "QuotaReached"
    NO_KV = "NoKv"
    NO_SEAT = "NoSeat"
    PREFILL_RUNS = "PrefillRuns"


class PreemptWhy(StrEnum):
    """Why requests lose their rows."""

    OWN_GROWTH = "OwnGrowth"
    ALL_STUCK = "AllStuck"
    QUOTA_RECLAIMED = "QuotaReclaimed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one round may hand out.

    `sm_percent`: bound on the sum of percents in flight (100 on CPU; more only where shares are
    caps). `max_prefills`: bound on prefills in flight, for where they overlap with decodes but not
    with each other; the next one then waits without holding decodes back. `prefill_turns`: prefills
    granted while a ready decode is passed over. `reclaim_rounds`: rounds a member waits for units
    inside its quota before others lose them.
    """

    sm_percent: int = 100
    max_prefills: int | None = None
    prefill_tokens: int = 2048
    max_seqs: int = 256
    prefill_turns: int = 4
    reclaim_rounds: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLoad:
    """One member in a round.

    `waiting`/`waiting_tokens`: requests, tokens still to prefill. `head_rows`: rows without which
    the next prefill step cannot do anything useful; `batch_rows`: rows that serve all waiting
    ones, up to the token budget. `decode_rows`: rows with which every decoding request takes its
    next step. `running` counts requests that hold rows. Units are head units; `leasable`: the most
    it can get while free units lie in pieces too small for its runs.
    """

    model: str
    prefill_percent: int
    decode_percent: int
    prefill_idle: bool = True
    decode_idle: bool = True
    waiting: int = 0
    waiting_tokens: int = 0
    head_rows: int = 0
    batch_rows: int = 0
    decoding: int = 0
    decode_rows: int = 0
    running: int = 0
    row_units: int = 1
    floor: int = 0
    quota: int = 0
    used: int = 0
    leasable: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one round leaves for the next; made by rounds only.

    `prefilled`, `decoded`: granted in the present cycle. `passed`: prefills granted while a ready
    decode was held. `starved`: rounds a member has waited for units inside its quota.
    """

    prefilled: frozenset[str] = frozenset()
    decoded: frozenset[str] = frozenset()
    owed: frozenset[str] = frozenset()
    passed: int = 0
    starved: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitLoad:
    """Everything one round may look at. `sm_in_use`: percents of the steps in flight; `prefills`:
    how many of those steps are prefills, counted only where `Limits.max_prefills` bounds them."""

    members: tuple[MemberLoad, ...]
    free_units: int
    sm_in_use: int = 0
    prefills: int = 0
    turn: Turn = field(default_factory=Turn)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantDecision:
    """One host may run one step: at most `rows` new rows, `token_budget` tokens."""

    model: str
    phase: Phase
    token_budget: int
    max_seqs: int
    rows: int
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A phase that has work and was not granted."""

    model: str
    phase: Phase
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempt:
    """`model` gives back at least `units` by its youngest requests; they start again later."""

    model: str
    units: int
    why: PreemptWhy


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The outcome of one round; valid until anything of the snapshot changes."""

    grants: tuple[GrantDecision, ...]
    held: tuple[Held, ...]
    preempts: tuple[Preempt, ...]
    turn: Turn

    @property
    def short_of_kv(self) -> frozenset[str]:
        """Members held for lack of KV."""
        return frozenset([h.model for h in self.held if h.why in _LACKS_KV])


def decode_bound(members: int, limits: Limits) -> int:
    """Grants to others that a ready decode waits for, at most."""
    return limits.prefill_turns + 3 * members


def prefill_bound(members: int, limits: Limits) -> int:
    """Grants to others that a ready prefill waits for, at most."""
    return 2 * members + members * (-(-2 * members // limits.prefill_turns) + 1)


def adbs_round(load: UnitLoad, limits: Limits) -> Round:
    """Decides one round; see the module's text for the policy."""
    desk = _Desk(load, limits)
    decodes = [m for m in desk.order if m.decoding]
    reserved = desk.pay_debt([m for m in decodes if m.model in load.turn.owed])
    if reserved is None:
        reserved = desk.prefills([m for m in desk.order if m.waiting])
    desk.decodes([m for m in decodes if m.model not in desk.granted_decode], reserved)
    desk.count_passed(decodes)
    desk.reclaim()
    return desk.result()


class _Desk:
    """The working copy of one round."""

    __slots__ = (
        "decoded", "free", "granted_decode", "granted_prefill", "grants", "held", "in_flight",
        "lacking", "limits", "order", "owed", "passed", "preempts", "prefilled", "prefills_left",
        "short", "sms", "starved", "taken", "turn",
    )  # fmt: skip

    def __init__(self, load: UnitLoad, limits: Limits) -> None:
        self.limits = limits
        self.turn = load.turn
        self.order = list(load.members)
        if len(self.order) > 1:
            self.order.sort(key=_by_priority)
        self.sms = limits.sm_percent - load.sm_in_use
        self.in_flight = load.sm_in_use > 0
        most = limits.max_prefills
        self.prefills_left = len(load.members) if most is None else most - load.prefills
        self.free = load.free_units
        # What members lack to their floors: never lent to another.
        self.lacking = sum([m.floor - m.used for m in self.order if m.floor > m.used])
        self.taken: dict[str, int] = {}
        self.prefilled = set(load.turn.prefilled)
        self.decoded = set(load.turn.decoded)
        self.owed: set[str] = set()
        self.granted_prefill: set[str] = set()
        self.granted_decode: set[str] = set()
        self.short: dict[str, int] = {}
        self.grants: list[GrantDecision] = []
        self.held: list[Held] = []
        self.preempts: list[Preempt] = []
        self.passed = 0
        self.starved: dict[str, int] = {}

    def pay_debt(self, owed: list[MemberLoad]) -> Phase | None:
        """Grants owed decodes; DECODE when one of them still needs SMs: then nothing else runs."""
        reserved: Phase | None = None
        for m in owed:
            if not m.decode_idle:
                continue
            rows = self._decode_rows(m)
            if rows is None:
                continue
            if reserved is not None or m.decode_percent > self.sms:
                reserved = Phase.DECODE
                self.owed.add(m.model)
                self._hold(m, Phase.DECODE, Why.NO_SMS)
                continue
            self._grant_decode(m, rows)
        return reserved

    def prefills(self, waiting: list[MemberLoad]) -> Phase | None:
        """Grants prefills; PREFILL when one is ready and only lacks SMs."""
        ready = [m for m in waiting if self._prefill_rows(m) is not None]
        if all(m.model in self.prefilled for m in ready):
            self.prefilled.clear()
        reserved: Phase | None = None
        for m in ready:
            if m.model in self.prefilled:
                self._hold(m, Phase.PREFILL, Why.CYCLE)
                continue
            if self.prefills_left <= 0:
                self._hold(m, Phase.PREFILL, Why.PREFILL_RUNS)
                continue
            if reserved is not None or m.prefill_percent > self.sms:
                why = Why.NO_SMS if reserved is None else Why.RESERVED_FOR_PREFILL
                reserved = Phase.PREFILL
                self._hold(m, Phase.PREFILL, why)
            elif (rows := self._prefill_rows(m)) is not None:
                self._grant_prefill(m, rows)
        return reserved

    def decodes(self, decoding: list[MemberLoad], reserved: Phase | None) -> None:
        """Fills what is left with decodes, unless somebody reserves it."""
        ready: list[MemberLoad] = []
        for m in decoding:
            if m.model in self.owed:
                continue
            if not m.decode_idle:
                self._hold(m, Phase.DECODE, Why.HOST_BUSY)
            elif self._decode_rows(m) is not None:
                ready.append(m)
        if reserved is not None:
            why = (Why.RESERVED_FOR_PREFILL if reserved is Phase.PREFILL
                   else Why.RESERVED_FOR_DECODE)  # fmt: skip
            for m in ready:
                self._hold(m, Phase.DECODE, why)
            return
        if all(m.model in self.decoded for m in ready):
            self.decoded.clear()
        blocked = False
        for m in ready:
            if m.model in self.decoded:
                self._hold(m, Phase.DECODE, Why.CYCLE)
            elif blocked or m.decode_percent > self.sms:
                blocked = True
                self._hold(m, Phase.DECODE, Why.NO_SMS)
            elif (rows := self._decode_rows(m)) is not None:
                self._grant_decode(m, rows)

    def count_passed(self, decodes: list[MemberLoad]) -> None:
        """Prefills that passed a ready decode bring it, in time, its own turn."""
        if not self.held:
            return
        held = {h.model for h in self.held
                if h.phase is Phase.DECODE and h.why not in _NOT_PASSED}  # fmt: skip
        if not held or self.owed:
            self.passed = self.turn.passed if self.owed else 0
            return
        self.passed = self.turn.passed + len(self.granted_prefill)
        if self.passed >= self.limits.prefill_turns:
            self.owed = held
            self.passed = 0

    def reclaim(self) -> None:
        """Counts who waits for units inside its quota; past the bound somebody must give."""
        if not self.short:
            return
        starved = {m: self.turn.starved.get(m, 0) + 1 for m in self.short}
        self.starved = starved
        late = [m for m, rounds in starved.items() if rounds > self.limits.reclaim_rounds]
        if not late:
            return
        wanted = max(self.short[m] for m in late)
        over = [(m.used - m.quota, m.model) for m in self.order if m.used > m.quota]
        if over:
            excess, victim = max(over)
            self._preempt(victim, min(excess, wanted), PreemptWhy.QUOTA_RECLAIMED)
        elif not self.grants and not self.in_flight:
            # Nobody is beyond its quota and nothing moves: the free units lie in pieces.
            others = [(m.used, m.model) for m in self.order if m.running and m.model != late[0]]
            if others:
                self._preempt(max(others)[1], wanted, PreemptWhy.ALL_STUCK)
        for m in late:
            starved[m] = 0

    def _preempt(self, victim: str, units: int, why: PreemptWhy) -> None:
        self.preempts.append(Preempt(model=victim, units=units, why=why))

    def result(self) -> Round:
        turn = Turn(prefilled=frozenset(self.prefilled), decoded=frozenset(self.decoded),
                    owed=frozenset(self.owed), passed=self.passed,
                    starved=self.starved)  # fmt: skip
        return Round(grants=tuple(self.grants), held=tuple(self.held),
                     preempts=tuple(self.preempts), turn=turn)  # fmt: skip

    def _allowed(self, m: MemberLoad) -> int:
        """Units `m` may take now: its floor from what is free, the rest from what none lacks."""
        used = m.used + self.taken.get(m.model, 0)
        own = m.floor - used if m.floor > used else 0
        spare = self.free - (self.lacking - own)
        allowed = min(m.quota - used, max(min(own, self.free), spare))
        if m.leasable is not None:
            allowed = min(allowed, m.leasable - self.taken.get(m.model, 0))
        return max(0, allowed)

    def _prefill_rows(self, m: MemberLoad) -> int | None:
        """Rows for a prefill step that can do something; None (and held) if there are not."""
        if not m.prefill_idle:
            self._hold(m, Phase.PREFILL, Why.HOST_BUSY)
            return None
        if m.running >= self.limits.max_seqs:
            self._hold(m, Phase.PREFILL, Why.NO_SEAT)
            return None
        # Running requests must be able to grow, else admitting one only preempts another.
        spare = m.decode_rows + m.decoding // 4 + 1 if m.decoding else 0
        rows = self._allowed(m) // m.row_units - spare
        if rows >= m.head_rows:
            return min(rows, m.batch_rows)
        self._hold_for_kv(m, Phase.PREFILL, m.head_rows + spare)
        return None

    def _decode_rows(self, m: MemberLoad) -> int | None:
        """Rows for a decode step in which at least one request advances, else None."""
        if not m.decode_rows:
            return 0
        rows = min(m.decode_rows, self._allowed(m) // m.row_units)
        if rows + m.decoding > m.decode_rows:
            return rows
        self._hold_for_kv(m, Phase.DECODE, 1)
        if m.running > 1 and m.model not in {p.model for p in self.preempts}:
            self._preempt(m.model, m.row_units, PreemptWhy.OWN_GROWTH)
        return None

    def _grant_prefill(self, m: MemberLoad, rows: int) -> None:
        budget = min(m.waiting_tokens, self.limits.prefill_tokens)
        self._grant(m, Phase.PREFILL, budget, self.limits.max_seqs - m.running, rows)
        self.prefills_left -= 1
        self.prefilled.add(m.model)
        self.granted_prefill.add(m.model)

    def _grant_decode(self, m: MemberLoad, rows: int) -> None:
        self._grant(m, Phase.DECODE, m.decoding, m.decoding, rows)
        self.decoded.add(m.model)
        self.granted_decode.add(m.model)

    def _grant(self, m: MemberLoad, phase: Phase, budget: int, seqs: int, rows: int) -> None:
        percent = m.prefill_percent if phase is Phase.PREFILL else m.decode_percent
        self._take(m, rows * m.row_units)
        self.sms -= percent
        self.grants.append(GrantDecision(model=m.model, phase=phase, token_budget=budget,
                                         max_seqs=seqs, rows=rows, percent=percent))  # fmt: skip

    def _take(self, m: MemberLoad, units: int) -> None:
        used = m.used + self.taken.get(m.model, 0)
        if m.floor > used:
            self.lacking -= min(units, m.floor - used)
        self.taken[m.model] = used + units - m.used
        self.free -= units

    def _hold(self, m: MemberLoad, phase: Phase, why: Why) -> None:
        self.held.append(_held(m.model, phase, why))

    def _hold_for_kv(self, m: MemberLoad, phase: Phase, rows: int) -> None:
        units = rows * m.row_units
        inside = m.used + units <= m.quota
        if inside:
            self.short[m.model] = max(units, self.short.get(m.model, 0))
        self._hold(m, phase, Why.NO_KV if inside else Why.QUOTA)


_LACKS_KV = frozenset({Why.QUOTA, Why.NO_KV})
_NOT_PASSED = _LACKS_KV | {Why.HOST_BUSY}


@lru_cache(maxsize=1024)
def _held(model: str, phase: Phase, why: Why) -> Held:
    """The same value every round; making it anew is most of what holding costs."""
    return Held(model=model, phase=phase, why=why)


def _by_priority(m: MemberLoad) -> tuple[int, str]:
    return (-m.priority, m.model)
