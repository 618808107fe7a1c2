"""ADBS as MuxServe released it, loop and bug, and with the bug mended (`swapped_return` off).

One tick per 0.1 ms: harvest what ended; launch prefills in turn; while none executes and one is
ready, hold the decodes back; else launch decodes in turn. The release hands the loop the answer
"a prefill is held for" where it should hand on "a prefill executes". So a waiting prefill keeps
decodes from starting in every other tick only: the steps that end retake their SMs 0.1 ms later,
and a prefill that needs more SMs than two decodes leave starts when both end within one tick.

Ticks in which nothing changed alternate in a known way, so they are counted, not run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil
from typing import Final, Self

from mux_core.adbs import Limits, MemberLoad, UnitLoad
from mux_core.engine import Phase
from mux_core.errors import SpecError
from mux_core.quota import QuotaClaim
from mux_core.simulator.policies.replayed import OVERBOOKED, Launches, Replayed, whole_pool
from mux_core.simulator.policies.sequence_caps import SequenceCaps
from mux_core.simulator.policy import Decision, Happening, Queue

TICK_S: Final = 1e-4
_ON_TICK: Final = 1e-6
"""Part of a tick by which a time may miss it and still count as on it (floating point)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdbsRules:
    """Which behaviours of the released loop are on; all on is the release.

    `swapped_return`: see the module. `sequence_quota`: KV shares cap sequences. `unblock_all`: a
    finished request lets all prefills that lacked KV try again, not its own LLM's only.
    `multi_prefill`: several LLMs may prefill at once. `restart_on_preempt`: a preempted request
    loses what it had generated.
    """

    swapped_return: bool = True
    sequence_quota: bool = True
    unblock_all: bool = True
    multi_prefill: bool = True
    restart_on_preempt: bool = True

    def with_switches(self, switches: Mapping[str, bool]) -> Self:
        """These rules with some switches set. Raises SpecError for an unknown switch."""
        known = [switch.name for switch in fields(self)]
        for name in switches:
            if name not in known:
                raise SpecError(f"switch {name}: unknown; one of {', '.join(known)}")
        return replace(self, **switches)


@dataclass(slots=True, kw_only=True)
class ReleasedAdbs:
    """One unit under the released loop. `caps`: who may run how many sequences."""

    name: str
    rules: AdbsRules
    caps: SequenceCaps
    limits: Limits = OVERBOOKED
    _books: Replayed = field(init=False)
    _next_tick: int = 0
    _prefill_executes: bool = False
    _prefill_ready: bool = False

    def __post_init__(self) -> None:
        self._books = Replayed(limits=self.limits, unblock_all=self.rules.unblock_all)

    def quotas(
        self, claims: Sequence[QuotaClaim], total: int, now: float, *, urgent: str | None = None
    ) -> Mapping[str, int]:
        return whole_pool(claims, total)

    def happened(self, what: Happening, model: str, now: float) -> None:
        self._books.happened(what, model)
        if what is Happening.PREEMPTED:
            self._prefill_executes = False

    def decide(self, load: UnitLoad, queues: Sequence[Queue], now: float) -> Decision:
        launches = Launches(self._books, load)
        tick = ceil(now / TICK_S - _ON_TICK)
        if tick * TICK_S > now + 2 * _ON_TICK * TICK_S:
            return self._decision(launches, again_at=tick * TICK_S)
        self._count_ticks_until(tick)
        if Phase.PREFILL in self._books.harvest(load):
            self._prefill_executes = False
        self.caps.refresh(load, now)
        reserve = self._launch(launches)
        if self.rules.swapped_return:
            self._prefill_executes = reserve
        # Only a tick of holding back is followed by one that may do something by itself.
        again = (reserve and self.rules.swapped_return) or bool(launches.preempts)
        return self._decision(launches, again_at=(tick + 1) * TICK_S if again else None)

    def _decision(self, launches: Launches, *, again_at: float | None) -> Decision:
        keeps = not self.rules.restart_on_preempt
        return Decision(round=launches.round(), again_at=again_at, keeps_output=keeps)

    def _count_ticks_until(self, tick: int) -> None:
        """The ticks since the last decision: nothing ended in them, only the flag moved."""
        skipped = tick - self._next_tick
        self._next_tick = tick + 1
        if skipped > 0 and self.rules.swapped_return:
            odd = bool(skipped % 2)
            self._prefill_executes = self._prefill_ready and self._prefill_executes != odd

    def _launch(self, launches: Launches) -> bool:
        """Launches what this tick may; whether it held decodes back for a prefill."""
        members = launches.load.members
        launches.resume()
        for m in self._books.rotation(members, Phase.PREFILL):
            if self._may_prefill(launches, m) and launches.prefill(m, self._cap(m)):
                self._prefill_executes = True
        self._prefill_ready = any(self._prefill_waits(launches, m) for m in members)
        if not self._prefill_executes and self._prefill_ready:
            return True
        for m in self._books.rotation(members, Phase.DECODE):
            if launches.may_decode(m) and launches.decode(m):
                self.caps.note_step(m.model, m.decoding)
        return False

    def _may_prefill(self, launches: Launches, m: MemberLoad) -> bool:
        if not m.prefill_idle or not launches.wants_prefill(m, self._cap(m)):
            return False
        if not self.rules.multi_prefill and self._books.runs(Phase.PREFILL):
            return False
        return launches.fits(m, Phase.PREFILL)

    def _prefill_waits(self, launches: Launches, m: MemberLoad) -> bool:
        """Could prefill, and was not launched for all it could."""
        launched = any(g.model == m.model and g.phase is Phase.PREFILL for g in launches.grants)
        left = m.waiting_tokens > self.limits.prefill_tokens if launched else True
        return left and launches.wants_prefill(m, self._cap(m))

    def _cap(self, m: MemberLoad) -> int:
        if not self.rules.sequence_quota:
            return self.limits.max_seqs
        return min(self.limits.max_seqs, self.caps.cap(m.model))
