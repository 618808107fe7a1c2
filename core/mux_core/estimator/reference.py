"""`--estimator muxserve` for our own plans: MuxServe's cost rules, without its slack and search.

Batches start at 1; the member with the smallest t/r below its rate and below its cap grows by one
until none is left; served = min(t, r). Shares are found by raising the neediest member's decode
share while percent is left. A share is priced at the largest profiled share not above it; below the
smallest profiled one at that one.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mux_core.costmodel.roofline import roofline_table
from mux_core.costmodel.table import StepTable
from mux_core.estimator.curves import Curve
from mux_core.estimator.muxserve import (
    ACTIVATION_GB,
    KV_FRACTION,
    MuxServeEstimator,
    ReferenceModel,
    Tenant,
    kv_split,
    reference_model,
)
from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome, UnitOutcome
from mux_core.llm import Llm
from mux_core.placement import Share
from mux_core.planning import PlanReason
from mux_core.units import GIB, Bytes, Percent

LEAST_PERCENT = 10


@dataclass(slots=True)
class _Growing:
    """One member while batches grow."""

    tenant: Tenant
    curve: Curve
    cap: int
    batch: int = 1
    served: float = 0.0


@dataclass(slots=True)
class ReferenceUnits:
    """UnitEstimator over MuxServe's rules; `step` is the granularity of the shares it chooses."""

    step: int = 10
    tables: Mapping[str, StepTable] = field(default_factory=dict)
    name: str = "muxserve"
    _curves: MuxServeEstimator = field(default_factory=MuxServeEstimator)
    _models: dict[tuple[Hashable, str], ReferenceModel] = field(default_factory=dict)
    _priced: dict[tuple[str, int, int], Curve] = field(default_factory=dict)
    _percents: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)

    def sizes(self, llm: Llm, kinds: Sequence[GroupKind]) -> tuple[GroupKind, ...]:
        """Measured degrees that hold the weights, from the LLM's least degree on."""
        found = [
            kind
            for kind in kinds
            if kind.gpus in (model := self._model(llm, kind.gpu)).table.tensors
            and kind.gpus >= model.least_tensor
            and (not llm.allowed_tensor or kind.gpus in llm.allowed_tensor)
            and self.footprint(llm, kind) < 1
        ]
        return tuple(sorted(found))

    def cost_key(self, llm: Llm) -> Hashable:
        sharing = llm.sharing
        return (llm.profile or llm.geometry, llm.weight_bytes, sharing.kv_request,
                sharing.min_percent, sharing.max_percent)  # fmt: skip

    def footprint(self, llm: Llm, kind: GroupKind) -> float:
        model = self._model(llm, kind.gpu)
        room = KV_FRACTION * kind.gpus * kind.memory / GIB
        floor = llm.sharing.kv_request / GIB
        return (model.weights_gb + ACTIVATION_GB + floor) / room

    def outcome(self, kind: GroupKind, asks: Sequence[Ask]) -> UnitOutcome:
        """Grows batches under the given shares, or under the smallest shares that suffice."""
        order = self._order(kind, asks)
        found = self._ordered_outcome(kind, [asks[i] for i in order])
        members = dict(zip(order, found.members, strict=True))
        return replace(found, members=tuple(members[i] for i in range(len(asks))))

    def carries(self, kind: GroupKind, asks: Sequence[Ask]) -> bool:
        ordered = [asks[i] for i in self._order(kind, asks)]
        tenants = [self.tenant(ask, kind) for ask in ordered]
        kv = kv_split(kind.gpus, tenants, kind.memory / GIB)
        if any(gb * GIB < a.llm.sharing.kv_request for gb, a in zip(kv, ordered, strict=True)):
            return False
        percents, grown = self._least_shares(kind, ordered, tenants, kv)
        return sum(percents) <= 100 and not _unmet(grown)

    def _order(self, kind: GroupKind, asks: Sequence[Ask]) -> list[int]:
        """One for every caller: sums of floats and ties must not depend on how it was asked."""
        return sorted(range(len(asks)), key=lambda i: (
            self._model(asks[i].llm, kind.gpu).name, asks[i].rate, asks[i].llm.name))  # fmt: skip

    def _ordered_outcome(self, kind: GroupKind, asks: Sequence[Ask]) -> UnitOutcome:
        tenants = [self.tenant(ask, kind) for ask in asks]
        kv = kv_split(kind.gpus, tenants, kind.memory / GIB)
        if all(ask.share is not None for ask in asks):
            percents = [ask.share.decode for ask in asks if ask.share is not None]
            grown = self._grow(kind, tenants, kv, percents)
        else:
            percents, grown = self._find_shares(kind, asks, tenants, kv)
        members = tuple(
            MemberOutcome(
                served=min(member.served, ask.rate),
                share=ask.share or Share(prefill=Percent(100), decode=Percent(percent)),
                kv=Bytes(int(gb * GIB)),
                utilisation=member.batch / max(1, member.cap),
                ttft_mean_s=sum(m.curve.prefills[m.batch] for m in grown),
                tpot_mean_s=member.curve.steps[member.batch],
            )
            for ask, member, percent, gb in zip(asks, grown, percents, kv, strict=True)
        )
        return _judged(members, asks)

    def _find_shares(
        self, kind: GroupKind, asks: Sequence[Ask], tenants: list[Tenant], kv: list[float]
    ) -> tuple[list[Percent], list[_Growing]]:
        percents, grown = self._least_shares(kind, asks, tenants, kv)
        if sum(percents) > 100 >= sum(least := self._least(asks)):
            return self._divided(kind, asks, tenants, kv, least)
        if len(asks) == 1 or _unmet(grown):
            return percents, grown
        return self._spread(kind, asks, tenants, kv, percents, grown)

    def _least_shares(
        self, kind: GroupKind, asks: Sequence[Ask], tenants: list[Tenant], kv: list[float]
    ) -> tuple[list[Percent], list[_Growing]]:
        """The smallest shares that suffice for everyone, where there are any."""
        percents = self._least(asks)
        spare = 100 - sum(percents)
        most = [
            Percent(min(ask.llm.sharing.max_percent, percent + spare))
            for ask, percent in zip(asks, percents, strict=True)
        ]
        grown = self._grow(kind, tenants, kv, most)
        # Where even all the spare percent for everyone is too little, no division of it will do.
        if spare <= 0 or len(asks) == 1 or _unmet(grown):
            return (most if len(asks) == 1 else percents), grown
        percents = self._needed(kind, kv, percents, grown)
        if sum(percents) > 100:
            return percents, grown
        return self._divided(kind, asks, tenants, kv, percents)

    def _least(self, asks: Sequence[Ask]) -> list[Percent]:
        least = max(LEAST_PERCENT, self.step)
        return [Percent(max(least, ask.llm.sharing.min_percent or 0)) for ask in asks]

    def _divided(
        self,
        kind: GroupKind,
        asks: Sequence[Ask],
        tenants: list[Tenant],
        kv: list[float],
        percents: list[Percent],
    ) -> tuple[list[Percent], list[_Growing]]:
        """The neediest gets more until nobody needs more, or there is no more to give."""
        while True:
            grown = self._grow(kind, tenants, kv, percents)
            needy = [(member.served / member.tenant.rate, index)
                     for index, member in enumerate(grown)
                     if member.served < member.tenant.rate]  # fmt: skip
            if not needy:
                return percents, grown
            raised = self._raise_one(kind, asks, percents, 100 - sum(percents), needy)
            if raised is None:
                return percents, grown
            percents = raised

    def _needed(
        self, kind: GroupKind, kv: list[float], least: list[Percent], most: list[_Growing]
    ) -> list[Percent]:
        """The smallest shares that suffice beside prefills as short as with the largest shares."""
        prefill = sum(member.curve.prefills[member.batch] for member in most)
        needed = list(least)
        for index, (member, gb) in enumerate(zip(most, kv, strict=True)):
            tenant = member.tenant
            rate = tenant.rate
            above = [p for p in self._levels(tenant.model, kind.gpus)[1:] if p > least[index]]
            for percent in (least[index], *above):
                curve = self.curve(tenant, kind.gpus, percent)
                cap = self._curves.cap(tenant, curve, gb)
                batch = curve.least_batch(rate, prefill, min(1, cap), cap)
                if curve.throughput(batch, prefill) >= rate:
                    needed[index] = Percent(percent)
                    break
        return needed

    def _raise_one(
        self,
        kind: GroupKind,
        asks: Sequence[Ask],
        percents: list[Percent],
        left: int,
        needy: list[tuple[float, int]],
    ) -> list[Percent] | None:
        """The neediest member that can still be raised gets its next priced share."""
        for _, index in sorted(needy):
            priced = self._levels(self._model(asks[index].llm, kind.gpu), kind.gpus)
            levels = [p for p in priced[1:] if p > percents[index]]
            ceiling = min(asks[index].llm.sharing.max_percent, percents[index] + left)
            if levels and levels[0] <= ceiling:
                raised = list(percents)
                raised[index] = Percent(levels[0])
                return raised
        return None

    def _spread(
        self,
        kind: GroupKind,
        asks: Sequence[Ask],
        tenants: list[Tenant],
        kv: list[float],
        percents: list[Percent],
        grown: list[_Growing],
    ) -> tuple[list[Percent], list[_Growing]]:
        """Gives what percent is left to the hottest member, where that costs nobody a request."""
        left = 100 - sum(percents)
        hottest = max(range(len(asks)), key=lambda i: (tenants[i].rate, -i))
        ceiling = min(asks[hottest].llm.sharing.max_percent, percents[hottest] + left)
        if ceiling <= percents[hottest]:
            return percents, grown
        spread = list(percents)
        spread[hottest] = Percent(ceiling)
        again = self._grow(kind, tenants, kv, spread)
        if all(a.served >= min(b.served, b.tenant.rate) for a, b in zip(again, grown, strict=True)):
            return spread, again
        return percents, grown

    def _grow(
        self, kind: GroupKind, tenants: list[Tenant], kv: list[float], percents: Sequence[Percent]
    ) -> list[_Growing]:
        growing = []
        for tenant, gb, percent in zip(tenants, kv, percents, strict=True):
            curve = self.curve(tenant, kind.gpus, percent)
            growing.append(_Growing(tenant, curve, self._curves.cap(tenant, curve, gb)))
        if not _leap(growing):
            grow(growing)
        return growing

    def curve(self, tenant: Tenant, tensor: int, percent: int) -> Curve:
        """Step times at the share a percent is priced at."""
        key = (tenant.model.name, tensor, percent)
        known = self._priced.get(key)
        if known is None:
            levels = self._levels(tenant.model, tensor)
            priced = max((level for level in levels if level <= percent), default=levels[0])
            known = self._priced[key] = self._curves.curve(tenant, tensor, priced)
        return known

    def _levels(self, model: ReferenceModel, tensor: int) -> tuple[int, ...]:
        key = (model.name, tensor)
        if key not in self._percents:
            self._percents[key] = model.table.percents(tensor)
        return self._percents[key]

    def tenant(self, ask: Ask, kind: GroupKind) -> Tenant:
        """The LLM with the lengths of the release, whatever it states."""
        return Tenant(name=ask.llm.name, model=self._model(ask.llm, kind.gpu), rate=ask.rate)

    def _described(self, llm: Llm, gpu: str) -> ReferenceModel:
        """A model known by its config: costs from its measured table, else the roofline."""
        assert llm.geometry is not None
        if llm.profile is not None and llm.profile in self.tables:
            return _described_model(llm, self.tables[llm.profile], f"{llm.profile} {gpu}")
        table = roofline_table(llm.geometry, gpu)
        return _described_model(llm, table, f"{gpu} {llm.geometry}")

    def _model(self, llm: Llm, gpu: str) -> ReferenceModel:
        key = (llm.profile or llm.geometry, gpu if llm.profile is None else "")
        if key not in self._models:
            self._models[key] = (
                self._described(llm, gpu)
                if llm.geometry is not None
                else reference_model(llm.profile or "")
            )
        return self._models[key]


def grow(members: Sequence[_Growing]) -> None:
    """The contract's growth by events instead of by ones; `served` holds t at the end.

    Between two measured batches the sum of prefills does not change and each t/r rises with its
    batch, so growing the smallest first fills all to one level. The level at which the first member
    needs the next measured batch is known in closed form; there everyone stops and it crosses.
    """
    active = [member for member in members if member.cap >= 1]
    for member in members:
        member.batch = 1 if member.cap >= 1 else 0
        member.served = 0.0
    while True:
        prefill = sum(member.curve.prefills[member.batch] for member in active)
        crossing: tuple[float, _Growing] | None = None
        needy: list[tuple[_Growing, int]] = []
        for member in active:
            _serve(member, prefill)
            if member.served >= member.tenant.rate or member.batch >= member.cap:
                continue
            end = min(member.curve.segment_end(member.batch), member.cap)
            needy.append((member, end))
            level = member.curve.throughput(end, prefill) / member.tenant.rate
            if level < 1 and end < member.cap and (crossing is None or level < crossing[0]):
                crossing = (level, member)
        level = 1.0 if crossing is None else crossing[0]
        for member, end in needy:
            if crossing is None or member is not crossing[1]:
                rate = level * member.tenant.rate
                member.batch = member.curve.least_batch(rate, prefill, member.batch, end)
            else:
                member.batch = end + 1
        if crossing is None:
            prefill = sum(member.curve.prefills[member.batch] for member in active)
            for member in active:
                _serve(member, prefill)
            return


def _leap(members: Sequence[_Growing]) -> bool:
    """`grow` by whole leaps, where the order of growth cannot matter; False where it could.

    While every prefill curve rises, a larger batch anywhere never satisfies anyone sooner, so the
    end is the least batch vector in which nobody below its cap is below its rate.
    """
    if any(member.cap < 1 for member in members):
        return False
    while True:
        prefill = sum(member.curve.prefills[member.batch] for member in members)
        moved = False
        for member in members:
            curve, had = member.curve, member.batch
            if had >= member.cap or curve.throughput(had, prefill) >= member.tenant.rate:
                continue
            batch = curve.least_batch(member.tenant.rate, prefill, had, member.cap)
            if batch > curve.rising_to:
                return False
            prefill += curve.prefills[batch] - curve.prefills[had]
            member.batch, moved = batch, True
        if not moved:
            for member in members:
                _serve(member, prefill)
            return True


def _unmet(members: Sequence[_Growing]) -> bool:
    return any(member.served < member.tenant.rate for member in members)


def _serve(member: _Growing, prefill: float) -> None:
    curve = member.curve
    member.served = member.batch / (curve.steps[member.batch] * curve.output_tokens + prefill)


def _judged(members: tuple[MemberOutcome, ...], asks: Sequence[Ask]) -> UnitOutcome:
    percents = sum(member.share.decode for member in members)
    if percents > 100 and any(ask.share is None for ask in asks):
        return UnitOutcome(members=members, refused=PlanReason.SHARING_NOT_BENEFICIAL,
                           message=f"decode shares sum to {percents}%; at most 100%")  # fmt: skip
    for ask, member in zip(asks, members, strict=True):
        if member.served < ask.rate:
            return UnitOutcome(
                members=members,
                refused=PlanReason.DOES_NOT_FIT
                if member.kv < GIB
                else PlanReason.SHARING_NOT_BENEFICIAL,
                message=f"{ask.llm.name} is offered {ask.rate:.3g}/s, served {member.served:.3g}/s",
            )
        if member.kv < ask.llm.sharing.kv_request:
            return UnitOutcome(members=members, refused=PlanReason.DOES_NOT_FIT,
                               message=f"{ask.llm.name} is left {member.kv} bytes of KV, requests "
                               f"{ask.llm.sharing.kv_request}")  # fmt: skip
    return UnitOutcome(members=members)


def _described_model(llm: Llm, table: StepTable, name: str) -> ReferenceModel:
    assert llm.geometry is not None
    return ReferenceModel(
        name=name,
        table=table,
        weights_gb=llm.weight_bytes / GIB,
        kv_gb_per_token=llm.geometry.kv_bytes_per_token / GIB,
        overhead_s=1e-4,
        least_tensor=1,
        rate_scale=1,
    )


def replay_tenant(llm: Llm) -> Tenant:
    """An LLM as the released planner sees it, with its own lengths."""
    model = reference_model(llm.profile or "")
    return replace(
        Tenant(name=llm.name, model=model, rate=llm.demand.rate),
        prompt_tokens=llm.demand.prompt_tokens,
        output_tokens=llm.demand.output_tokens,
    )
