"""What members of a unit whose shares are turns do to each other, settled in rounds.

* *Decoding.* A step of a member takes its own time, longer where more threads run than there are
  cores; or its turn in a cycle of everybody's steps, where not all fit; or as long as the others
  that run, where a prefill waits for what they hold. That is averaged over which others decode and
  over the percents that prefills hold.
* *Prefills.* They wait for percents that decodes hold, for other prefills, and for the one before
  them on their own host.

Both move each other: the rounds go on until what each member does stands still, or are moments
of a window of time that began with nobody there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from math import comb, exp, inf

import numpy as np

from mux_core.costmodel.measured_pairs import PairInterference
from mux_core.costmodel.profile_set import CpuWork, threads_of
from mux_core.estimator.turn_member import BATCH, Floats, TurnMember

ROUNDS = 60
STILL = 1e-4
MOMENTS = 120
"""A window is looked at so many times, from when nobody is there to its end."""
EXACT_MEMBERS = 5
"""Up to so many members, every set of decoding ones is looked at; beyond, the busiest alone."""
MOST_HELD = 0.98
"""Prefills never take all of the time: decodes that they passed over get their turn."""

Crowd = Sequence[TurnMember]
"""Members that have something to decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnUnit:
    """What members share: percents, which prefills take first; cores; factors on steps.

    `prefillers` of `prefill_percent` each may run at once. The rest are means over time:
    `prefilling`: prefills that would run were there no limit, each taking `slower` times as long
    as alone; `room_s`: what a prefill waits for percents, `roomless`: the chance that it does;
    `beside`: threads of what runs beside steps, `crowding`: times as long that takes for all that
    runs; `scheduling`: part of the time that the scheduler's process runs; `awake`: part of a
    decode step in which anything of it runs.
    """

    members: Sequence[TurnMember]
    prefill_percent: int
    prefillers: int
    factors: PairInterference
    cpu: CpuWork
    prefilling: float = 0.0
    slower: float = 1.0
    room_s: float = 0.0
    roomless: float = 0.0
    beside: float = 0.0
    crowding: float = 1.0
    scheduling: float = 0.0
    awake: float = 1.0

    @property
    def arriving(self) -> float:
        """Requests per second."""
        return sum(member.ask.rate for member in self.members)

    def prefill_s(self, alone_s: float) -> float:
        """Seconds of a prefill beside what runs."""
        return alone_s * self.slower

    def prefill_wait(self, member: TurnMember, runs_s: float) -> tuple[float, float]:
        """(mean wait for percents and for the member's own host, the chance that there is any).

        `runs_s`: mean seconds of its prefills.
        """
        full = dict(_prefills_running(self))[self.prefillers]
        queue = 0.0
        if self.prefillers < sum(m.ask.rate > 0 for m in self.members):
            queue = full * runs_s / max(1 - MOST_HELD, self.prefillers - self.prefilling)
        own = min(0.99, member.prefills_per_s * runs_s)
        square = sum(p * p for p in member.prefills) / len(member.prefills) / member.prefill_s**2
        rest = own * runs_s * square / 2
        chance = min(1.0, self.roomless + own + (full if queue else 0.0))
        return self.room_s + queue + rest / (1 - own), chance

    def free(self, prefills: int) -> int:
        """Percents left for decodes while so many prefills run."""
        return max(0, 100 - prefills * self.prefill_percent)

    def threads(self, percent: int) -> int:
        return threads_of(percent, self.cpu.cores)

    def longer(self, decode_threads: float, prefills: int, own: float = 0.0) -> float:
        """How many times as long anything takes while these run, `own` of them all the time: others
        that decode also wait for a process to wake."""
        always = own + prefills * self.threads(self.prefill_percent) + self.beside
        others = decode_threads - own
        few = int(others)
        less, more = (self._longer(always, number) for number in (few, few + 1))
        return less + (others - few) * (more - less)

    def _longer(self, always: float, others: int) -> float:
        """Beside so many others, each awake or not."""
        return sum(
            comb(others, k) * self.awake**k * (1 - self.awake) ** (others - k)
            * max(1.0, (always + k) / self.cpu.usable)
            for k in range(others + 1)
        )  # fmt: skip

    def decode_factor(self, prefills: int, decodes: float) -> float:
        """On a decode step, beside so many prefills and as one of so many decodes."""
        if prefills:
            return self.factors.decode_factor(1.0)
        return self.factors.decode_by_decode if decodes > 1 else 1.0


def turn_unit(
    members: Sequence[TurnMember], factors: PairInterference, cpu: CpuWork
) -> TurnUnit:  # fmt: skip
    """The unit while nobody is there."""
    return TurnUnit(members=members, prefill_percent=_prefill_percent(members),
                    prefillers=_prefillers(members), factors=factors, cpu=cpu)  # fmt: skip


def settled(unit: TurnUnit, hold_back: Callable[[], None]) -> TurnUnit:
    """The unit at the fixed point; its members are settled with it.

    `hold_back` says how many of each decode at most. Waits between steps stay as they are without:
    near its capacity a unit would else settle where few are let in and those few are fast, which is
    not where it goes.
    """
    for _ in range(ROUNDS):
        before = [member.busy for member in unit.members]
        unit = _later(unit, inf)
        moved = [abs(m.busy - busy) for m, busy in zip(unit.members, before, strict=True)]
        if max(moved) < STILL:
            break
    hold_back()
    for member in unit.members:
        member.there = member.lasting()
    return unit


def followed(
    unit: TurnUnit, begin: float, end: float, hold_back: Callable[[], None]
) -> TurnUnit:  # fmt: skip
    """The unit as it is on average between these seconds after nobody was there, and its members.

    Near its capacity a unit takes minutes to fill, and beyond it never settles. `hold_back` is
    asked at each moment.
    """
    step = end / MOMENTS
    seen = []
    for moment in range(1, MOMENTS + 1):
        unit = _later(unit, step)
        hold_back()
        if moment * step > begin:
            seen.append([(member.there, member.waits) for member in unit.members])
    for member, moments in zip(unit.members, zip(*seen, strict=True), strict=True):
        member.average(moments)
    return _loaded(unit)


def _later(unit: TurnUnit, seconds: float) -> TurnUnit:
    """After so long with what its members do now."""
    unit = _loaded(unit)
    for member in unit.members:
        member.gather(unit.room_s)
        others = [m for m in unit.members if m is not member]
        member.take(_waits(member, others, unit), seconds)
    return unit


def _prefill_percent(members: Sequence[TurnMember]) -> int:
    """Of a prefill, on average over the time that they run."""
    weights = [max(1e-9, m.ask.rate * m.prefill_s) for m in members]
    mean = sum(w * m.share.prefill for w, m in zip(weights, members, strict=True)) / sum(weights)
    return round(mean)


def _prefillers(members: Sequence[TurnMember]) -> int:
    """How many members may prefill at once, of those that are asked anything."""
    percents = accumulate(sorted(m.share.prefill for m in members if m.ask.rate > 0))
    return max(1, sum(percent <= 100 for percent in percents))


def _loaded(unit: TurnUnit) -> TurnUnit:
    """With the means that follow from what its members do."""
    unit = replace(unit, beside=_beside(unit), scheduling=_scheduling(unit), awake=_awake(unit))
    crowding = _crowding(unit)
    unit = replace(unit, crowding=crowding, slower=crowding * _prefill_factor(unit))
    offered = sum(m.prefills_per_s * unit.prefill_s(m.prefill_s + m.mates_s) for m in unit.members)
    unit = replace(unit, prefilling=offered)
    room_s, roomless = _for_room(unit)
    return replace(unit, room_s=room_s, roomless=roomless)


def _beside(unit: TurnUnit) -> float:
    """Threads of arrivals and the client that run on average, for longer where others run too."""
    cost, client = unit.cpu.unit, unit.cpu.unit.client
    return unit.crowding * sum(
        m.ask.rate * (cost.arrival_s + client.step_s + client.token_s
                      + m.output * client.of_token(m.steps_per_token))
        for m in unit.members)  # fmt: skip


def _scheduling(unit: TurnUnit) -> float:
    """Part of the time that the scheduler's process runs, were it never interrupted."""
    work = unit.cpu.unit.scheduler
    return sum(
        m.ask.rate * (work.request_s + work.of_step(1)
                      + m.output * work.of_token(m.steps_per_token))
        for m in unit.members)  # fmt: skip


def _awake(unit: TurnUnit) -> float:
    """Part of a decode step in which anything of it runs."""
    steps = sum(m.busy * m.busy_step for m in unit.members)
    idle = sum(m.busy * unit.cpu.unit.idle_s(m.busy_batch) for m in unit.members)
    return max(0.0, 1 - idle / steps) if steps else 1.0


def _crowding(unit: TurnUnit) -> float:
    """How many times as long a prefill, or a request's arrival, takes for all that runs."""
    factor = 0.0
    for k, often in _prefills_running(unit):
        # Itself and the others; the last one finds as many as may run.
        prefills = min(k + 1, unit.prefillers)
        for likely, crowd in _crowds(unit.members):
            _, threads = _running(crowd, unit.free(prefills), unit)
            factor += often * likely * unit.longer(threads, prefills)
    return factor


def _prefill_factor(unit: TurnUnit) -> float:
    """On a prefill, by the pairs that are likely."""
    idle = 1.0
    for member in unit.members:
        if member.share.decode <= unit.free(1):
            idle *= 1 - member.busy
    another = min(1.0, unit.prefilling / unit.prefillers) if unit.prefillers > 1 else 0.0
    beside_prefill = unit.factors.prefill_factor(decoding=True, prefilling=True) - 1
    beside_decode = unit.factors.prefill_factor(decoding=True) - 1
    return 1 + another * beside_prefill + (1 - another) * (1 - idle) * beside_decode


def _prefills_running(unit: TurnUnit) -> Iterator[tuple[int, float]]:
    """(prefills that run, chance), as of a queue; a member has one prefill at a time."""
    offered = min(unit.prefilling, MOST_HELD * unit.prefillers)
    weights = [1.0]
    for k in range(1, unit.prefillers + 1):
        weights.append(weights[-1] * offered / k)
    # All prefills that wait find as many running as may.
    weights[-1] *= unit.prefillers / (unit.prefillers - offered)
    total = sum(weights)
    yield from ((k, weight / total) for k, weight in enumerate(weights))


def _crowds(members: Sequence[TurnMember]) -> Iterator[tuple[float, Crowd]]:
    """Every set of members that may decode at once, and its chance."""
    if len(members) > EXACT_MEMBERS:
        many = round(sum(m.busy for m in members))
        yield 1.0, sorted(members, key=lambda m: -m.busy)[:many]
        return
    for present in product((False, True), repeat=len(members)):
        chance = 1.0
        for here, member in zip(present, members, strict=True):
            chance *= member.busy if here else 1 - member.busy
        yield chance, [m for here, m in zip(present, members, strict=True) if here]


def _running(crowd: Crowd, free: int, unit: TurnUnit) -> tuple[float, float]:
    """(percents, threads) that the decodes of a crowd hold on average, of those that are free."""
    able = _able(crowd, free)
    wanted = sum(m.share.decode for m in able)
    part = _usable(able, free) / wanted if wanted else 0.0
    return part * wanted, part * sum(unit.threads(m.share.decode) for m in able)


def _able(crowd: Crowd, free: int) -> Crowd:
    return [m for m in crowd if m.share.decode <= free]


def _usable(able: Crowd, free: int) -> int:
    """The most percents that decodes can hold at once: of three at 40 only two run."""
    sums = {0}
    for member in able:
        sums |= {held + member.share.decode for held in sums if held + member.share.decode <= free}
    return max(sums)


def _waits(member: TurnMember, others: Sequence[TurnMember], unit: TurnUnit) -> Floats:
    """Seconds between two tokens of the member, by batch."""
    speed = np.zeros_like(member.steps)
    crowds = list(_crowds(others))
    for k, often in _prefills_running(unit):
        if member.share.decode > unit.free(k):
            continue
        for likely, crowd in crowds:
            speed += often * likely / _turn(member, crowd, k, unit)
    return 1 / speed


def _turn(member: TurnMember, others: Crowd, prefills: int, unit: TurnUnit) -> Floats:
    """Seconds from a step of the member to its next, by batch, beside these decodes and prefills.

    Who fits runs; where not all do, nobody steps again before every other one has.
    """
    free = unit.free(prefills)
    able = _able(others, free)
    own = member.steps + _scheduler_wait(unit)
    steps = [np.full_like(own, m.busy_step) for m in able]
    hosts = 1 + len(able)
    wanted = member.share.decode + sum(m.share.decode for m in able)
    percents, threads = _running([member, *able], free, unit)
    longer = unit.longer(threads, prefills, own=threads / hosts)
    turn = own * longer
    if percents < wanted:
        taken = member.share.decode * own
        for other, step in zip(able, steps, strict=True):
            taken = taken + other.share.decode * step
        turn = np.maximum(own, taken / percents) * longer
    elif prefills < unit.prefillers and percents > (spare := free - unit.prefill_percent):
        # A prefill that lacks percents lets no decode begin before enough have ended.
        lacking = percents - spare - member.share.decode
        until = _together(own, able, steps, lacking, longer / hosts)
        stops = 1 - np.exp(-unit.arriving * until)
        turn = stops * until + (1 - stops) * turn
    return turn * unit.decode_factor(prefills, hosts * percents / wanted)


def _together(
    own: Floats, others: Crowd, steps: Sequence[Floats], lacking: float, longer: float
) -> Floats:
    """When a step has ended that began with the others', and of these as many as hold so much; all
    share the cores, each running `longer` times as long per step that runs."""

    def end(step: Floats) -> Floats:
        work = sum((np.minimum(step, other) for other in (own, *steps)), np.zeros_like(own))
        return np.maximum(step, work * longer)

    until = end(own)
    ended = 0.0
    for step, other in sorted(zip(steps, others, strict=True), key=lambda one: float(one[0][0])):
        if ended >= lacking:
            break
        ended += other.share.decode
        until = np.maximum(until, end(step))
    return until


def _scheduler_wait(unit: TurnUnit) -> Floats:
    """Seconds that a step's result waits for the scheduler, by batch: steps are much alike there,
    so it finds half of one before it."""
    use = min(MOST_HELD, unit.scheduling)
    work = unit.cpu.unit.scheduler
    return (work.step_s + BATCH * work.token_s) * use / 2 / (1 - use)


def _for_room(unit: TurnUnit) -> tuple[float, float]:
    """(seconds that a prefill waits for percents that decodes hold, the chance that it does)."""
    # Another one that waits already gets the first ones that are free.
    second = 1 - exp(-unit.arriving * unit.room_s)
    seconds = chance = 0.0
    for k, often in _prefills_running(unit):
        if k >= unit.prefillers:
            continue
        for likely, crowd in _crowds(unit.members):
            one = _until_room(crowd, k, 1, unit)
            two = _until_room(crowd, k, 2, unit) if k + 2 <= unit.prefillers else one
            seconds += often * likely * ((1 - second) * one + second * two)
            chance += often * likely * (one > 0)
    return seconds, chance


def _until_room(crowd: Crowd, prefills: int, more: int, unit: TurnUnit) -> float:
    """Seconds until the decodes of a crowd leave room for more prefills; none start meanwhile.

    Of n that began at any moment the first ends, on average, when 1 / (n + 1) of a step is over.
    """
    free = unit.free(prefills)
    able = _able(crowd, free)
    percents, threads = _running(able, free, unit)
    lacking = percents - (free - more * unit.prefill_percent)
    if lacking <= 0:
        return 0.0
    running = percents / (sum(m.share.decode for m in able) / len(able))
    ends = min(running, max(1.0, lacking * running / percents))
    step = sum(m.busy_step for m in able) / len(able)
    longer = unit.longer(threads, prefills, own=threads / len(able))
    slower = longer * unit.decode_factor(prefills, running)
    return ends / (running + 1) * step * slower
