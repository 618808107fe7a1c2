"""Estimator of a unit whose shares are turns: a CPU, where a step holds its percent while it runs.

Steps in flight hold at most 100 percent together, so hosts share a unit step by step: prefills
first, decodes in turn; what runs at once shares the cores, scheduler and client among it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf

from mux_core.costmodel.interference import Interference
from mux_core.costmodel.measured_pairs import PairInterference
from mux_core.costmodel.profile_set import CpuWork
from mux_core.costmodel.table import StepTable
from mux_core.estimator.memory import fixed_bytes, room_bytes
from mux_core.estimator.turn_member import (
    MOST_BATCH,
    TAIL,
    Lengths,
    TurnMember,
    turn_member,
)
from mux_core.estimator.turn_unit import TurnUnit, followed, settled, turn_unit
from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome, UnitOutcome
from mux_core.planning import PlanReason
from mux_core.units import Bytes, ModelName

MOST_WAITS = 40
"""No 99th percentile lies beyond so many mean waits, however few wait at all."""
UNSHARED = CpuWork(cores=100)
"""So many cores that nothing waits for one."""


@dataclass(slots=True)
class TurnUnits:
    """Predicts a CPU unit from its members' measured (or fitted) steps.

    It divides no KV: `kv` of an outcome is what is `held`. `lengths` by model where more than the
    means is known. `cpu`: the cores, and what runs there beside steps. `tables` are those that
    the LLMs name. `window`: between which seconds after nobody was there means are asked; what
    settles in the end, if None.
    """

    tables: Mapping[str, StepTable]
    interference: Interference
    cpu: CpuWork | None = None
    headroom: float = 0.9
    lengths: Mapping[ModelName, Lengths] = field(default_factory=dict)
    window: tuple[float, float] | None = None

    def outcome(self, kind: GroupKind, asks: Sequence[Ask]) -> UnitOutcome:
        """The unit at these rates and shares; `asks` name a share each."""
        members = [turn_member(ask, kind, self.tables, self.lengths.get(ask.llm.name))
                   for ask in asks]  # fmt: skip
        unit = turn_unit(members, _pair_factors(self.interference), self.cpu or UNSHARED)
        room = room_bytes(kind) - sum(fixed_bytes(ask.llm, kind) for ask in asks)

        def hold_back() -> None:
            _hold_back(members, room)

        if self.window is None:
            unit = settled(unit, hold_back)
        else:
            unit = followed(unit, *self.window, hold_back)
        outcomes = tuple(_outcome(member, unit, lasts=self.window is None) for member in members)
        return _verdict(outcomes, asks, room, self.headroom)


def _pair_factors(given: Interference) -> PairInterference:
    if isinstance(given, PairInterference):
        return given
    return PairInterference(decode_by_prefill=given.decode_by_prefill,
                            prefill_by_decode=given.prefill_by_decode)  # fmt: skip


def _hold_back(members: Sequence[TurnMember], room: float) -> None:
    """No more requests decode than each has KV for beside the others."""
    held = [member.held for member in members]
    need = sum(held)
    for member, own in zip(members, held, strict=True):
        left = room - (need - own) if need <= room or not need else room * own / need
        member.most = int(min(MOST_BATCH, max(1.0, left / member.request_bytes)))


def _outcome(member: TurnMember, unit: TurnUnit, *, lasts: bool) -> MemberOutcome:
    rate, output = member.ask.rate, member.output
    runs = [unit.prefill_s(alone + member.mates_s) for alone in member.prefills]
    runs_s = sum(runs) / len(runs)
    # Its own prefill host, and the percents that all prefills share.
    prefilling = max(member.prefills_per_s * runs_s, unit.prefilling / unit.prefillers)
    decoding, tokens_per_s = member.decode_use, float(member.tokens_per_s.sum())
    served = rate / max(1.0, prefilling, unit.scheduling)
    if output and (decoding >= 1 or not lasts):
        served = min(served, tokens_per_s / output)
    # Decodes that ask for too much end a window with a queue, not without end.
    endless = max(prefilling, unit.scheduling, decoding if lasts else 0.0) >= 1
    in_turn, chance = unit.prefill_wait(member, runs_s)
    for_kv, short = member.for_kv()
    wait, chance = in_turn + for_kv, min(1.0, chance + short)
    arrival = unit.cpu.unit.arrival_s * unit.crowding
    bases = [arrival + seconds for seconds in runs]
    held = Bytes(int(member.held))
    return MemberOutcome(
        served=served, share=member.share, kv=held, held=held,
        utilisation=max(prefilling, decoding, unit.scheduling),
        ttft_mean_s=inf if endless else sum(bases) / len(bases) + wait,
        ttft_p99_s=inf if endless else _tail_of(bases, wait, chance),
        tpot_mean_s=member.decoding / tokens_per_s if tokens_per_s else None,
        tpot_p99_s=member.wait_tail if output else None,
        attainment=_attainment(member, endless, bases, wait, chance),
    )  # fmt: skip


def _tail_of(bases: Sequence[float], wait: float, busy: float) -> float:
    """The time that all but `TAIL` of requests stay under; the wait has an exponential tail."""
    low, high = min(bases), max(bases) + MOST_WAITS * wait + 1e-9
    for _ in range(50):
        middle = (low + high) / 2
        over = sum(_over(middle - base, wait, busy) for base in bases) / len(bases)
        low, high = (middle, high) if over > TAIL else (low, middle)
    return high


def _over(spare: float, wait: float, busy: float) -> float:
    if spare < 0:
        return 1.0
    return busy * exp(-spare * busy / wait) if wait > 0 and busy > 0 else 0.0


def _attainment(
    member: TurnMember, endless: bool, bases: Sequence[float], wait: float, busy: float
) -> float | None:
    """Share of requests that meet TTFT and TPOT; waits and batch taken as independent."""
    slo = member.ask.llm.slo
    if slo is None:
        return None
    if endless:
        return 0.0
    met = 1.0
    if slo.ttft_s is not None:
        met *= 1 - sum(_over(slo.ttft_s - base, wait, busy) for base in bases) / len(bases)
    tokens = member.tokens_per_s
    if slo.tpot_s is not None and tokens.sum():
        met *= float(tokens[member.waits <= slo.tpot_s].sum() / tokens.sum())
    return met


def _verdict(
    outcomes: tuple[MemberOutcome, ...], asks: Sequence[Ask], room: float, headroom: float
) -> UnitOutcome:
    if room <= 0:
        return UnitOutcome(members=outcomes, refused=PlanReason.DOES_NOT_FIT,
                           message="weights exceed memory")  # fmt: skip
    for ask, found in zip(asks, outcomes, strict=True):
        if found.utilisation > headroom:
            return UnitOutcome(
                members=outcomes, refused=PlanReason.SHARING_NOT_BENEFICIAL,
                message=f"{ask.llm.name} would run at {found.utilisation:.0%}, headroom is "
                f"{headroom:.0%}")  # fmt: skip
    return UnitOutcome(members=outcomes)
