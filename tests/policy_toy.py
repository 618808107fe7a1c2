"""A toy unit for tests of policies: requests of one length, steps as long as a profile says.

It knows nothing of the simulator: what both show is the policy's doing. KV rows hold 32 tokens.
"""

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mux_core.adbs import MemberLoad, Turn, UnitLoad
from mux_core.costmodel.profile import Profile, profile_of
from mux_core.engine import Phase
from mux_core.estimator.unit import GroupKind
from mux_core.placement import GpuGroup, KvQuota, Member, Share, Unit
from mux_core.quota import QuotaClaim
from mux_core.simulator.policies import policy_factory
from mux_core.simulator.policy import Happening, Queue, UnitPolicy, UnitSetting
from mux_core.units import GIB, Bytes, NodeName, Percent, UnitId
from planner_builders import an_llm

ROW = 32
HEAD_BLOCKS = {"llama-7b": 1024, "llama-13b": 1600, "llama-30b": 3120, "llama-65b": 5120}
"""Head blocks of a token block of all layers, over all GPUs."""
HEAD_BLOCK_BYTES = 16384


@dataclass(frozen=True)
class Tenant:
    """One LLM of the toy unit."""

    name: str
    profile: str
    rate: float
    prefill: int
    decode: int
    prompt: int = 161
    output: int = 337


def setting_of(tenants: tuple[Tenant, ...], *, gpus: int = 4, kv_gib: float = 38.4) -> UnitSetting:
    members = tuple(
        Member(
            model=an_llm(t.name).name,
            replica=0,
            tensor=gpus,
            share=Share(prefill=Percent(t.prefill), decode=Percent(t.decode)),
            kv=KvQuota(guaranteed=Bytes(0), limit=Bytes(80 * GIB)),
            rate=t.rate,
        )
        for t in sorted(tenants, key=lambda t: t.name)
    )
    group = GpuGroup(node=NodeName("node-0"), gpus=tuple(range(gpus)))
    profiles = {t.name: t.profile for t in tenants}
    return UnitSetting(
        unit=Unit(id=UnitId("u0"), group=group, members=members),
        kind=GroupKind(gpus=gpus, gpu="a100-80gb", memory=Bytes(80 * GIB)),
        llms={m.model: an_llm(m.model, profiles[m.model], m.rate) for m in members},
        kv_units=int(kv_gib * GIB / HEAD_BLOCK_BYTES),
        row_units={m.model: HEAD_BLOCKS[profiles[m.model]] for m in members},
        block_tokens={m.model: ROW for m in members},
    )


@dataclass(eq=False)
class _Request:
    arrived: float
    tokens: int = 0
    first: float | None = None
    done: int = 0
    rows: int = 0


@dataclass
class _Place:
    tenant: Tenant
    profile: Profile
    row_units: int
    waiting: deque[_Request] = field(default_factory=deque)
    decoding: list[_Request] = field(default_factory=list)
    flying: dict[Phase, list[_Request]] = field(default_factory=dict)
    finished: list[_Request] = field(default_factory=list)
    arrivals: int = 0
    quota: int = 0
    used: int = 0

    def batch(self) -> list[_Request]:
        """Whole requests up to 2,048 tokens, oldest first."""
        tokens, chosen = 0, []
        for request in self.waiting:
            tokens += self.tenant.prompt + request.tokens
            if chosen and tokens > 2048:
                break
            chosen.append(request)
        return chosen

    def rows(self, request: _Request) -> int:
        return -(-(self.tenant.prompt + request.tokens + 1) // ROW)

    def load(self, limit: int) -> MemberLoad:
        batch = self.batch()
        grow = sum(self.rows(r) > r.rows for r in self.decoding)
        return MemberLoad(
            model=self.tenant.name,
            prefill_percent=self.tenant.prefill,
            decode_percent=self.tenant.decode,
            prefill_idle=Phase.PREFILL not in self.flying,
            decode_idle=Phase.DECODE not in self.flying,
            waiting=len(self.waiting),
            waiting_tokens=sum(self.tenant.prompt + r.tokens for r in self.waiting),
            head_rows=self.rows(batch[0]) if batch else 0,
            batch_rows=sum(map(self.rows, batch)),
            decoding=len(self.decoding),
            decode_rows=grow,
            running=len(self.decoding) + sum(map(len, self.flying.values())),
            row_units=self.row_units,
            quota=self.quota,
            used=self.used,
        )


class ToyUnit:
    """Runs a policy over Poisson arrivals; `results` tells what came of it."""

    def __init__(self, setting: UnitSetting, tenants: tuple[Tenant, ...], policy: UnitPolicy):
        self.policy = policy
        self.kv = setting.kv_units
        self.free = setting.kv_units
        self.tensor = setting.kind.gpus
        self.places = {
            m.model: _Place(
                next(t for t in tenants if t.name == m.model),
                profile_of(setting.llms[m.model], "a100-80gb"),
                setting.row_units[m.model],
            )
            for m in setting.unit.members
        }
        self.turn = Turn()
        self.busy = 0
        self.events: list[tuple[float, int, Any]] = []
        self.count = 0
        self.again: float | None = None

    def run(self, seconds: float, seed: int = 1) -> None:
        self.seconds = seconds
        for name, place in self.places.items():
            draw = random.Random(f"{seed}{name}")
            at = draw.expovariate(place.tenant.rate)
            while at < seconds:
                self._push(at, (name, None, 0))
                at += draw.expovariate(place.tenant.rate)
        while self.events and self.events[0][0] < seconds:
            now = self.events[0][0]
            while self.events and self.events[0][0] == now:
                self._happen(heapq.heappop(self.events)[2], now)
            self._decide(now)

    def _push(self, at: float, what: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (at, self.count, what))

    def _happen(self, what: Any, now: float) -> None:
        if what is None:
            return
        name, phase, percent = what
        place = self.places[name]
        if phase is None:
            place.arrivals += 1
            place.waiting.append(_Request(now))
            return
        self.busy -= percent
        for request in place.flying.pop(phase):
            request.tokens += 1
            if phase is Phase.PREFILL:
                request.first = request.first or now
                self.policy.happened(Happening.PREFILLED, name, now)
            if request.tokens >= place.tenant.output:
                self._release(place, request)
                request.done = 1
                place.finished.append(request)
                self.policy.happened(Happening.FINISHED, name, now)
            else:
                place.decoding.append(request)

    def _release(self, place: _Place, request: _Request) -> None:
        self.free += request.rows * place.row_units
        place.used -= request.rows * place.row_units
        request.rows = 0

    def _decide(self, now: float) -> None:
        places = list(self.places.values())
        claims = [
            QuotaClaim(model=p.tenant.name, floor=0, limit=self.kv, used=p.used) for p in places
        ]
        quotas = self.policy.quotas(claims, self.kv, now)
        for place in places:
            place.quota = quotas[place.tenant.name]
        load = UnitLoad(
            members=tuple(p.load(256) for p in places),
            free_units=self.free,
            sm_in_use=self.busy,
            turn=self.turn,
        )
        queues = [
            Queue(
                p.waiting[0].arrived if p.waiting else None,
                p.tenant.rate,
                p.tenant.prompt,
                p.tenant.output,
            )
            for p in places
        ]
        decision = self.policy.decide(load, queues, now)
        self.turn = decision.round.turn
        for grant in decision.round.grants:
            self._start(self.places[grant.model], grant, now)
        for preempt in decision.round.preempts:
            self._preempt(self.places[preempt.model], preempt.units, decision.keeps_output, now)
        again = decision.again_at
        if again is None and decision.round.preempts:
            again = now
        if again is not None and again != self.again:
            self._push(again, None)
        self.again = again

    def _start(self, place: _Place, grant: Any, now: float) -> None:
        if grant.phase is Phase.PREFILL:
            batch = self._admit(place, grant)
        else:
            batch = self._advance(place, grant.rows)
        if not batch:
            return
        for request in batch:
            more = place.rows(request) - request.rows
            self.free -= more * place.row_units
            place.used += more * place.row_units
            request.rows += more
        assert self.free >= 0
        place.flying[grant.phase] = batch
        self.busy += grant.percent
        seconds = self._seconds(place, grant, batch)
        self._push(now + seconds, (place.tenant.name, grant.phase, grant.percent))

    def _admit(self, place: _Place, grant: Any) -> list[_Request]:
        batch, rows = [], 0
        for request in place.batch()[: grant.max_seqs]:
            rows += place.rows(request)
            if rows > grant.rows:
                break
            batch.append(place.waiting.popleft())
        return batch

    def _advance(self, place: _Place, rows: int) -> list[_Request]:
        """Who takes a step: everyone that needs no row, and as many others as there are rows."""
        batch, rest = [], []
        for request in place.decoding:
            rows -= place.rows(request) > request.rows
            (batch if rows >= 0 or place.rows(request) == request.rows else rest).append(request)
        place.decoding = rest
        return batch

    def _seconds(self, place: _Place, grant: Any, batch: list[_Request]) -> float:
        tokens = place.tenant.prompt + sum(r.tokens for r in batch) / len(batch)
        if grant.phase is Phase.PREFILL:
            return place.profile.prefill_s(
                tensor=self.tensor, percent=grant.percent, batch=len(batch), tokens=round(tokens)
            )
        return place.profile.decode_s(
            tensor=self.tensor, percent=grant.percent, batch=len(batch), context=round(tokens, -2)
        )

    def _preempt(self, place: _Place, units: int, keeps: bool, now: float) -> None:
        place.decoding.sort(key=lambda r: r.arrived)
        while units > 0 and place.decoding:
            request = place.decoding.pop()
            units -= request.rows * place.row_units
            self._release(place, request)
            request.tokens = request.tokens if keeps else 0
            place.waiting.appendleft(request)
            self.policy.happened(Happening.PREEMPTED, place.tenant.name, now)

    def results(self) -> dict[str, tuple[float, float]]:
        """By LLM: served over offered, and mean seconds to the first token, waits still on."""
        found = {}
        for name, place in self.places.items():
            running = place.decoding + [r for batch in place.flying.values() for r in batch]
            everyone = place.finished + running + list(place.waiting)
            waits = [
                (r.first if r.first is not None else self.seconds) - r.arrived for r in everyone
            ]
            assert len(everyone) == place.arrivals
            # What is in flight at the end is not held against the unit.
            served = (len(place.finished) + len(running)) / place.arrivals
            found[name] = served, sum(waits) / len(waits)
        return found


def replay(name: str, tenants: tuple[Tenant, ...], seconds: float, **switches: bool) -> ToyUnit:
    setting = setting_of(tenants)
    unit = ToyUnit(setting, tenants, policy_factory(name, switches)(setting))
    unit.run(seconds)
    return unit
