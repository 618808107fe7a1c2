"""Estimator of a unit whose shares are turns: a CPU, where a step holds its percent while it runs.

Steps in flight hold at most 100 percent together, so a unit is a small number of servers that its
hosts share step by step: prefills first, decodes in turn. Where shares let more steps start than
there are cores, all that run share the cores instead; what scheduler and client run counts among
them. What is asked of it is settled in rounds:

* *Decoding.* With n requests decoding, a step of member i takes its own time, or, when others want
  the servers too, its turn in a cycle of everybody's steps; that is averaged over which others are
  active and how many servers prefills hold. The n requests share the steps equally, so their
  number is a birth-death process that knows of output lengths nothing but the mean.
* *Prefills.* They wait for the rest of a step when all servers are busy, for other prefills, and
  for the one before them on their own host.

Both move each other: the rounds go on until activities stand still.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import exp, inf

import numpy as np
from numpy.typing import NDArray

from mux_core.costmodel.interference import Interference
from mux_core.costmodel.measured_pairs import PairInterference
from mux_core.costmodel.profile import Profile, profile_of
from mux_core.costmodel.profile_set import CpuWork, UnitCost, threads_of
from mux_core.costmodel.table import StepTable
from mux_core.engine import kv_geometry
from mux_core.estimator.memory import fixed_bytes, kv_per_token, room_bytes
from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome, UnitOutcome
from mux_core.llm import Llm
from mux_core.placement import Share
from mux_core.planning import PlanReason
from mux_core.units import Bytes, ModelName, Percent
from mux_core.unitspec import UNIT_BYTES

ROUNDS = 60
STILL = 1e-4
MOST_BATCH = 256
"""Requests a member decodes at once, at most; as the scheduler's limits."""
EXACT_MEMBERS = 5
"""Up to so many members, every set of active ones is looked at; beyond, the likeliest alone."""
TAIL = 0.01
MOST_HELD = 0.98
"""Prefills never take all of the time: decodes that they passed over get their turn."""

Floats = NDArray[np.float64]

BATCH: Floats = np.arange(1.0, MOST_BATCH + 1)
Lengths = Sequence[tuple[float, float]]
"""Equally likely (prompt, output) tokens of a model's requests."""
Crowd = tuple[float, tuple[float, ...]]
"""A chance, and seconds of a step of each member that decodes then."""


def _none() -> Floats:
    return np.zeros(0)


@dataclass(slots=True, kw_only=True)
class _Member:
    """One member while its unit is settled. `activity`: part of the time it has a decode to run.

    `most`: requests that decode at once, as its KV has room for.
    """

    ask: Ask
    share: Share
    profile: Profile
    lengths: Lengths
    token_bytes: float
    block_tokens: int
    context: float
    output: float
    prefills: tuple[float, ...]
    steps: Floats
    most: int = MOST_BATCH
    activity: float = 0.0
    busy_step: float = 0.0
    waits: Floats = field(default_factory=_none)
    chances: Floats = field(default_factory=_none)

    @property
    def prefill_s(self) -> float:
        return sum(self.prefills) / len(self.prefills)

    @property
    def decoding(self) -> float:
        return float(BATCH @ self.chances[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """What members share: servers, how many of them prefills can and do hold, factors on steps.

    `slots`: steps that may run at once, on so many `threads` each. `beside`: cores taken by what
    runs beside steps. `scheduling`: part of the time that the scheduler's process runs.
    """

    servers: int
    prefillers: int
    prefilling: float
    factors: PairInterference
    cpu: CpuWork
    slots: int
    threads: int
    beside: float = 0.0
    scheduling: float = 0.0

    @property
    def shares_cores(self) -> bool:
        return self.slots > self.cpu.cores

    def crowd(self, running: int) -> float:
        """How many times as long anything takes while so many steps run, or would."""
        return max(1.0, (min(running, self.slots) * self.threads + self.beside) / self.cpu.cores)

    def crowded(self, steps: Floats, others: int) -> Floats:
        """Seconds that steps take more while so many other hosts run beside them."""
        none, one = (self.cpu.unit.crowded(own, others) for own in (0.0, 1.0))
        return none + steps * (one - none)


@dataclass(slots=True)
class TurnUnits:
    """Predicts a CPU unit from its members' measured (or fitted) steps.

    It divides no KV: `kv` of an outcome is what is `held`. `lengths` by model where more than the
    means is known. `cpu`: the cores, and what runs there beside steps. `tables` are those that
    the LLMs name.
    """

    tables: Mapping[str, StepTable]
    interference: Interference
    cpu: CpuWork | None = None
    headroom: float = 0.9
    lengths: Mapping[ModelName, Lengths] = field(default_factory=dict)

    def outcome(self, kind: GroupKind, asks: Sequence[Ask]) -> UnitOutcome:
        """The unit at these rates and shares; `asks` name a share each."""
        members = [self._member(kind, ask) for ask in asks]
        unit = self._settle(members)
        room = room_bytes(kind) - sum(fixed_bytes(ask.llm, kind) for ask in asks)
        _hold_back(members, room)
        outcomes = tuple(self._outcome(member, members, unit) for member in members)
        return _verdict(outcomes, asks, room, self.headroom)

    def _member(self, kind: GroupKind, ask: Ask) -> _Member:
        llm, share = ask.llm, ask.share or Share(prefill=Percent(50), decode=Percent(50))
        profile = profile_of(llm, kind.gpu, self.tables)
        lengths = self.lengths.get(llm.name) or (
            (llm.demand.prompt_tokens, llm.demand.output_tokens),
        )
        # A long output is there for longer, so it weighs more in the contexts that steps see.
        decoded = sum(o for _, o in lengths)
        context = sum(o * (p + o / 2) for p, o in lengths) / decoded
        curve = profile.decode_curve(tensor=kind.gpus, percent=share.decode, context=context)
        return _Member(
            ask=ask, share=share, profile=profile, lengths=lengths,
            token_bytes=kv_per_token(llm), block_tokens=_block_tokens(llm), context=context,
            output=sum(max(0.0, o - 1) for _, o in lengths) / len(lengths),
            prefills=tuple(profile.prefill_s(tensor=kind.gpus, percent=share.prefill, batch=1,
                                             tokens=p) for p, _ in lengths),
            steps=np.array([curve.at(n) for n in BATCH]),
        )  # fmt: skip

    def _settle(self, members: Sequence[_Member]) -> _Unit:
        """Activities at the fixed point, damped on the way."""
        narrowest = min((m.share.decode for m in members), default=100)
        cpu, slots = self.cpu or CpuWork(cores=100), 100 // narrowest
        servers = max(1, min(slots, cpu.cores))
        for member in members:
            member.busy_step = float(member.steps[0])
        unit = _Unit(servers=servers, prefillers=min(servers, len(members)), prefilling=0.0,
                     factors=_pair_factors(self.interference), cpu=cpu,
                     slots=slots, threads=threads_of(narrowest, cpu.cores))  # fmt: skip
        for _ in range(ROUNDS):
            unit = replace(unit, beside=_beside(members, cpu.unit),
                           scheduling=_scheduling(members, cpu.unit))  # fmt: skip
            unit = replace(unit, prefilling=_prefilling(members, unit))
            moved = 0.0
            for member in members:
                before = member.activity
                _solve(member, [m for m in members if m is not member], unit)
                member.activity = (before + member.activity) / 2
                moved = max(moved, abs(member.activity - before))
            if moved < STILL:
                break
        return unit

    def _outcome(self, member: _Member, members: Sequence[_Member], unit: _Unit) -> MemberOutcome:
        ask, output = member.ask, member.output
        done = float(member.chances[1:] @ (BATCH / member.waits))
        # Its own prefill host, and the servers that all prefills share.
        prefilling = max(ask.rate * member.prefill_s, unit.prefilling / unit.prefillers)
        decoding = ask.rate * output * float(member.waits[member.most - 1]) / member.most
        use = max(prefilling, decoding, unit.scheduling)
        served = ask.rate / max(1.0, prefilling)
        wait, busy = _prefill_wait(member, members, unit)
        if decoding >= 1:
            served = min(served, done / output)
        else:
            delay, delayed = _room_wait(member, decoding)
            wait, busy = wait + delay, min(1.0, busy + delayed)
        slower = _prefill_factor(members, unit)
        arrival = unit.cpu.unit.arrival_s * _crowding(members, unit)
        bases = [arrival + (p + _cold(p, members, unit)) * slower for p in member.prefills]
        decode_s = member.decoding / done if done else 0.0
        held = Bytes(int(_held(member)))
        return MemberOutcome(
            served=served, share=member.share, kv=held, held=held, utilisation=use,
            ttft_mean_s=sum(bases) / len(bases) + wait if use < 1 else inf,
            ttft_p99_s=_tail_of(bases, wait, busy) if use < 1 else inf,
            tpot_mean_s=decode_s or None,
            tpot_p99_s=_step_tail(member) if output else None,
            attainment=_attainment(member, use, bases, wait, busy),
        )  # fmt: skip


def _block_tokens(llm: Llm) -> int:
    """Tokens of a KV block of the member."""
    shape = llm.geometry
    if shape is None:
        return 1
    return kv_geometry(layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
                       dtype=shape.dtype, unit_bytes=UNIT_BYTES).block_tokens  # fmt: skip


def _pair_factors(given: Interference) -> PairInterference:
    if isinstance(given, PairInterference):
        return given
    return PairInterference(decode_by_prefill=given.decode_by_prefill,
                            prefill_by_decode=given.prefill_by_decode)  # fmt: skip


def _prefill_factor(members: Sequence[_Member], unit: _Unit) -> float:
    """On a prefill, by what is likely to run beside it; one server has nothing beside."""
    if unit.servers == 1:
        return 1.0
    crowding = _crowding(members, unit)
    idle = 1.0
    for member in members:
        idle *= 1 - member.activity
    prefill = min(1.0, unit.prefilling / unit.servers)
    beside_prefill = unit.factors.prefill_factor(decoding=True, prefilling=True) - 1
    beside_decode = unit.factors.prefill_factor(decoding=True) - 1
    return crowding * (1 + prefill * beside_prefill + (1 - prefill) * (1 - idle) * beside_decode)


def _crowding(members: Sequence[_Member], unit: _Unit) -> float:
    """How many times as long a prefill, or a request's arrival, takes beside all decodes."""
    return sum(likely * chance * unit.crowd(1 + len(steps) + k)
               for likely, steps in _crowds(members)
               for k, chance in _held_servers(unit))  # fmt: skip


def _steps_per_token(member: _Member) -> float:
    return member.activity / member.decoding if len(member.chances) and member.decoding else 1.0


def _beside(members: Sequence[_Member], cost: UnitCost) -> float:
    """Cores that arrivals and the client take on average."""
    client = cost.client
    return sum(
        m.ask.rate * (cost.arrival_s + client.step_s + client.token_s
                      + m.output * client.of_token(_steps_per_token(m)))
        for m in members)  # fmt: skip


def _scheduling(members: Sequence[_Member], cost: UnitCost) -> float:
    """Part of the time that the scheduler's process runs, were it never interrupted."""
    work = cost.scheduler
    return sum(
        m.ask.rate * (work.request_s + work.of_step(1)
                      + m.output * work.of_token(_steps_per_token(m)))
        for m in members)  # fmt: skip


def _prefilling(members: Sequence[_Member], unit: _Unit) -> float:
    """Servers that prefills hold on average."""
    asked = sum(m.ask.rate * (m.prefill_s + _cold(m.prefill_s, members, unit)) for m in members)
    return asked * _prefill_factor(members, unit)


def _cold(prefill_s: float, members: Sequence[_Member], unit: _Unit) -> float:
    """Seconds that a prefill takes more because decode hosts stepped since its host did."""
    return unit.cpu.unit.crowded(prefill_s, sum(m.activity for m in members))


def _held_servers(unit: _Unit) -> Iterator[tuple[int, float]]:
    """(servers that prefills hold, chance), as of a queue; a member has one prefill at a time."""
    offered = min(unit.prefilling, MOST_HELD * unit.prefillers)
    weights = [1.0]
    for k in range(1, unit.prefillers + 1):
        weights.append(weights[-1] * offered / k)
    # All prefills that wait find every server held.
    weights[-1] *= unit.prefillers / (unit.prefillers - offered)
    total = sum(weights)
    yield from ((k, weight / total) for k, weight in enumerate(weights))


def _solve(member: _Member, others: Sequence[_Member], unit: _Unit) -> None:
    """Step waits by batch, then how often each batch is met."""
    crowds = list(_crowds(others))
    held = list(_held_servers(unit))
    member.waits = _waits(member, crowds, held, unit)
    member.chances = _batches(member.ask.rate * member.output, member.waits, MOST_BATCH)
    member.activity = 1 - float(member.chances[0])
    busy = member.chances[1:]
    member.busy_step = float(busy @ member.steps / busy.sum() if busy.sum() else member.steps[0])


def _crowds(members: Sequence[_Member]) -> Iterator[Crowd]:
    """Every set of members that decode at once, as their steps, and its chance."""
    if len(members) > EXACT_MEMBERS:
        many = round(sum(m.activity for m in members))
        busiest = sorted(members, key=lambda m: -m.activity)[:many]
        yield 1.0, tuple(m.busy_step for m in busiest)
        return
    for present in product((False, True), repeat=len(members)):
        chance = 1.0
        for here, member in zip(present, members, strict=True):
            chance *= member.activity if here else 1 - member.activity
        yield chance, tuple(m.busy_step for here, m in zip(present, members, strict=True) if here)


def _waits(
    member: _Member, crowds: Sequence[Crowd], held: Sequence[tuple[int, float]], unit: _Unit
) -> Floats:
    """Seconds between two tokens of the member, by batch."""
    speed = np.zeros_like(member.steps)
    own, wait = member.steps, _scheduler_wait(unit)
    for k, chance in held:
        free = unit.servers - k
        if not free and not unit.shares_cores:
            continue
        for likely, others in crowds:
            factor = 1.0
            if k:
                factor = unit.factors.decode_factor(1.0)
            elif others and unit.servers > 1:
                factor = unit.factors.decode_by_decode
            beside, longer = len(others) + k, unit.crowd(1 + len(others) + k)
            turn = (own + wait + unit.crowded(own, beside)) * longer
            if len(others) >= free and not unit.shares_cores:
                # Nobody steps again before every other one has.
                rest = np.array(others)
                rest = (rest + unit.crowded(rest, beside)) * longer
                turn = np.maximum(turn, (turn + rest.sum()) / free)
            speed += chance * likely / (turn * factor)
    return 1 / speed


def _scheduler_wait(unit: _Unit) -> Floats:
    """Seconds that a step's result waits for the scheduler, by batch: steps are much alike there,
    so it finds half of one before it."""
    use = min(MOST_HELD, unit.scheduling)
    work = unit.cpu.unit.scheduler
    return (work.step_s + BATCH * work.token_s) * use / 2 / (1 - use)


def _batches(tokens_per_s: float, waits: Floats, most: int) -> Floats:
    """The chance of 0, 1, 2... requests decoding: each token keeps one there for a wait."""
    if tokens_per_s <= 0:
        return np.concatenate(([1.0], np.zeros_like(waits)))
    ratios = np.log(tokens_per_s * waits / BATCH)
    ratios[most:] = -inf
    logs = np.concatenate(([0.0], np.cumsum(ratios)))
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def _prefill_wait(member: _Member, members: Sequence[_Member], unit: _Unit) -> tuple[float, float]:
    """(mean wait for a server and for its own host, the chance that there is any)."""
    held = dict(_held_servers(unit))
    full = rest = 0.0
    for likely, steps in _crowds(members):
        for k, chance in held.items():
            if steps and len(steps) + k >= unit.servers:
                full += likely * chance
                running = np.array(steps)
                running += unit.crowded(running, len(steps) - 1 + k)
                rest += likely * chance * float(running.mean())
    # The first of so many steps that began at any moment ends, on average, so early.
    rest *= unit.crowd(unit.servers) / (1 + unit.servers)
    most = unit.prefillers
    queue = held[most] * member.prefill_s / max(1 - MOST_HELD, most - unit.prefilling)
    queue = queue if most == unit.servers else 0.0
    own = min(0.99, member.ask.rate * member.prefill_s)
    square = sum(p * p for p in member.prefills) / len(member.prefills)
    before = member.ask.rate * square / 2 / (1 - own)
    busy = min(1.0, full + own + (held[most] if queue else 0.0))
    return rest + queue + before, busy


def _tail_of(bases: Sequence[float], wait: float, busy: float) -> float:
    """The time that all but `TAIL` of requests stay under; the wait has an exponential tail."""
    low, high = min(bases), max(bases) + 20 * wait + 1e-9
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
    member: _Member, use: float, bases: Sequence[float], wait: float, busy: float
) -> float | None:
    """Share of requests that meet TTFT and TPOT; waits and batch taken as independent."""
    slo = member.ask.llm.slo
    if slo is None:
        return None
    if use >= 1:
        return 0.0
    met = 1.0
    if slo.ttft_s is not None:
        met *= 1 - sum(_over(slo.ttft_s - base, wait, busy) for base in bases) / len(bases)
    tokens = BATCH * member.chances[1:]
    if slo.tpot_s is not None and tokens.sum():
        met *= float(tokens[member.waits <= slo.tpot_s].sum() / tokens.sum())
    return met


def _step_tail(member: _Member) -> float:
    """The wait that all but `TAIL` of tokens have."""
    passed = np.cumsum(BATCH * member.chances[1:])
    if not passed[-1]:
        return float(member.waits[0])
    at = int(np.searchsorted(passed, (1 - TAIL) * passed[-1]))
    return float(member.waits[min(at, len(BATCH) - 1)])


def _held(member: _Member) -> float:
    """Bytes of KV that its decoding requests hold on average."""
    return member.decoding * _request_bytes(member)


def _request_bytes(member: _Member) -> float:
    """KV of a request that decodes, on average; the last block is half full."""
    return (member.context + member.block_tokens / 2) * member.token_bytes


def _hold_back(members: Sequence[_Member], room: float) -> None:
    """No more requests decode than each has KV for beside the others.

    Waits between steps stay as they are without that limit: near its capacity a unit would else
    settle where few are let in and those few are fast, which is not where it goes.
    """
    held = list(map(_held, members))
    need = sum(held)
    for member, own in zip(members, held, strict=True):
        left = room - (need - own) if need <= room else room * own / need
        member.most = int(min(MOST_BATCH, max(1.0, left / _request_bytes(member))))
        member.chances = _batches(member.ask.rate * member.output, member.waits, member.most)


def _room_wait(member: _Member, use: float) -> tuple[float, float]:
    """(mean wait for KV, the chance that there is any), as of a queue with so many servers: who
    finds none free waits until one is, in turn.
    """
    full = float(member.chances[member.most])
    delayed = full / (1 - use * (1 - full))
    until_free = member.output * float(member.waits[member.most - 1]) / member.most
    return delayed * until_free / (1 - use), delayed


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
