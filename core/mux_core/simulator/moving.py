"""A plan carried out on running units: who starts loads first, who goes drains, nobody is cut.

1. A replica starts as soon as its GPUs are free of units that go and its weights fit beside what is
   there; KV that was lent comes back first, after `RECLAIM_AFTER_S` by force. Engines of one unit
   load one after the other. It serves when it is loaded.
2. A replica that goes is sent nothing new once no replica of its model is still to come, finishes
   what it has, and gives back its memory.
3. Where starts and endings wait for each other, the endings go first; requests for the model then
   wait at the gateway.

A new share needs new processes, which open beside the old ones: it holds `Loading.start_s` later.
KV floors, limits and routing weights hold at once. A unit's policy begins anew with its members;
one that holds state of running steps (the replayed ones) does not survive that.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mux_core.errors import SpecError
from mux_core.placement import Member, Placement, Unit
from mux_core.planning import Plan, PlanStep
from mux_core.routes import Endpoint, planned_weight
from mux_core.simulator.making import Maker
from mux_core.simulator.member import SimMember
from mux_core.simulator.record import MoveLog
from mux_core.simulator.replanning import Loading
from mux_core.simulator.routing import Router
from mux_core.simulator.unit import SimUnit
from mux_core.units import ModelName, UnitId

RECLAIM_AFTER_S = 2.0
"""As the unit scheduler: so long lent KV may come back by itself."""
_AGAIN_S = 0.05
Place = tuple[UnitId, ModelName]


class Stage(Protocol):
    """The run as a mover needs it."""

    units: dict[UnitId, SimUnit]
    router: Router

    def at(self, at: float, event: Callable[[float], SimUnit | None]) -> None: ...

    def opened(self, unit: SimUnit, now: float) -> None:
        """`unit` holds its GPUs from now on."""
        ...

    def closed(self, unit: SimUnit, now: float) -> None: ...

    def release(self, model: ModelName, now: float) -> None:
        """Requests of the model that wait at the gateway go to its replicas."""
        ...

    def retire(self, unit: SimUnit, member: SimMember, now: float) -> None: ...


@dataclass(slots=True, kw_only=True)
class _Change:
    """A plan on its way. Values: when each began and, once it holds, when that was."""

    at: float
    target: Placement
    steps: tuple[PlanStep, ...]
    starts: dict[Place, Member]
    stops: set[Place]
    begun: dict[Place, float] = field(default_factory=dict)
    ready: dict[Place, float] = field(default_factory=dict)
    gone: dict[Place, float] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return len(self.ready) == len(self.starts) and len(self.gone) == len(self.stops)

    @property
    def moves_something(self) -> bool:
        """Whether something is under way that will call for another look."""
        loading = any(place not in self.ready for place in self.starts if place in self.begun)
        return loading or any(p not in self.gone for p in self.stops if p in self.begun)


class Mover:
    """One change at a time; `logs` tells of all, the one under way included."""

    def __init__(self, stage: Stage, maker: Maker, loading: Loading) -> None:
        self._stage = stage
        self._maker = maker
        self._loading = loading
        self._change: _Change | None = None
        self._done: list[MoveLog] = []
        self._loads_until: dict[UnitId, float] = {}
        self._unserved: dict[ModelName, float] = {}
        self._unserved_s: dict[ModelName, float] = {}

    @property
    def is_busy(self) -> bool:
        return self._change is not None

    def logs(self, now: float) -> tuple[MoveLog, ...]:
        under_way = [self._log(self._change, now)] if self._change is not None else []
        return (*self._done, *under_way)

    def adopt(self, plan: Plan, current: Placement, now: float) -> None:
        """Begins to turn what runs, which is `current`, into what `plan` proposes."""
        target = plan.proposed
        had = {(unit.id, member.model): member for unit, member in current.members()}
        wants = {(unit.id, member.model): member for unit, member in target.members()}
        self._unserved_s = {}
        self._change = _Change(
            at=now, target=target, steps=plan.steps,
            starts={place: wants[place] for place in sorted(wants.keys() - had.keys())},
            stops=had.keys() - wants.keys(),
        )  # fmt: skip
        for place in sorted(had.keys() & wants.keys()):
            self._resize(place, wants[place], now)
        for model in sorted({model for _, model in [*had, *wants]}):
            self._route(model, now)
        self._advance(now)

    # Order

    def _advance(self, now: float) -> None:
        """Begins all that can begin now."""
        change = self._change
        if change is None:
            return
        for place, member in change.starts.items():
            if place not in change.begun:
                self._try_start(change, place, member, now)
        for place in sorted(change.stops - change.begun.keys()):
            if not self._is_awaited(change, place[1]):
                self._stop(change, place, now)
        if not change.is_done and not change.moves_something:
            self._break_knot(change, now)
        if change.is_done:
            self._done.append(self._log(change, now))
            self._change = None

    def _is_awaited(self, change: _Change, model: ModelName) -> bool:
        """Whether a replica of the model is still to come."""
        return any(place[1] == model and place not in change.ready for place in change.starts)

    def _break_knot(self, change: _Change, now: float) -> None:
        """Starts wait for endings that wait for starts: the first one's GPUs are cleared."""
        blocked = next(place for place in change.starts if place not in change.begun)
        group = self._plan(change, blocked[0]).group
        for unit in list(self._stage.units.values()):
            if _overlap(unit.plan, group.node, group.gpus):
                for place in sorted(change.stops - change.begun.keys()):
                    if place[0] == unit.plan.id:
                        self._stop(change, place, now)

    # Starting

    def _try_start(self, change: _Change, place: Place, plan: Member, now: float) -> None:
        """Claims memory for the weights, if GPUs and memory can be had, and begins to load."""
        unit = self._unit_for(change, place[0], now)
        if unit is None:
            return
        grown = unit.plan.with_members((*unit.plan.members, plan))
        try:
            lost = unit.total - self._maker.kv_units(grown)
        except SpecError:  # not beside what is there now
            return
        change.begun[place] = now
        if lost <= 0:
            self._load(change, unit, grown, plan, now)
        else:
            unit.claimed += lost
            self._maker.divide(unit.members, unit.total - unit.claimed)
            unit.rebalance(now)
            self._reserve(change, unit, plan, lost, now, since=now)

    def _reserve(self, change: _Change, unit: SimUnit, plan: Member, units: int, now: float, *,
                 since: float) -> None:  # fmt: skip
        if unit.free >= units:
            unit.claimed -= units
            grown = unit.plan.with_members((*unit.plan.members, plan))
            self._load(change, unit, grown, plan, now)
            return
        if now - since >= RECLAIM_AFTER_S:
            unit.reclaim(now)

        def again(later: float) -> SimUnit:
            self._reserve(change, unit, plan, units, later, since=since)
            return unit

        self._stage.at(now + _AGAIN_S, again)

    def _load(
        self, change: _Change, unit: SimUnit, grown: Unit, plan: Member, now: float
    ) -> None:  # fmt: skip
        unit.plan = grown
        self._refit(unit, now)
        gpus = self._maker.kind(grown).gpus
        begin = max(now, self._loads_until.get(grown.id, now))
        ready = begin + self._loading.seconds(self._maker.llms[plan.model], gpus)
        self._loads_until[grown.id] = ready

        def serve(later: float) -> SimUnit:
            member = self._maker.member(grown, plan)
            member.metered_at = later
            unit.members = (*unit.members, member)
            self._renew(unit, later)
            change.ready[grown.id, plan.model] = later
            self._route(plan.model, later)
            self._stage.release(plan.model, later)
            self._advance(later)
            return unit

        self._stage.at(ready, serve)

    def _unit_for(self, change: _Change, unit_id: UnitId, now: float) -> SimUnit | None:
        """The unit, made empty where it is new and its GPUs are free."""
        known = self._stage.units.get(unit_id)
        if known is not None:
            return known
        plan = self._plan(change, unit_id)
        taken = any(_overlap(unit.plan, plan.group.node, plan.group.gpus)
                    for unit in self._stage.units.values())  # fmt: skip
        if taken:
            return None
        unit = self._maker.empty_unit(plan)
        self._stage.opened(unit, now)
        return unit

    @staticmethod
    def _plan(change: _Change, unit_id: UnitId) -> Unit:
        plan = change.target.unit(unit_id)
        assert plan is not None
        return plan

    # Ending

    def _stop(self, change: _Change, place: Place, now: float) -> None:
        change.begun[place] = now
        unit = self._stage.units[place[0]]
        member = unit.member(place[1])
        member.draining = True
        self._route(place[1], now)
        if member.is_empty:
            self.drains(unit, member, now)

    def drains(self, unit: SimUnit, member: SimMember, now: float) -> None:
        """A member that goes has nothing left."""

        def drained(later: float) -> SimUnit:
            self._drained(unit, member, later)
            return unit

        self._stage.at(now, drained)

    def _drained(self, unit: SimUnit, member: SimMember, now: float) -> None:
        """Its memory, and perhaps the unit's GPUs, are free."""
        change = self._change
        assert change is not None
        place = (unit.plan.id, member.model)
        if place in change.gone or not member.is_empty:
            return
        change.gone[place] = now
        self._stage.retire(unit, member, now)
        unit.members = tuple(m for m in unit.members if m is not member)
        left = tuple(m for m in unit.plan.members if m.model != member.model)
        unit.plan = unit.plan.with_members(left)
        if left:
            self._refit(unit, now)
            self._renew(unit, now)
        else:
            self._stage.closed(unit, now)
        self._advance(now)

    # Running members

    def _resize(self, place: Place, plan: Member, now: float) -> None:
        """New floors and weights at once, new shares when new processes are up."""
        unit = self._stage.units[place[0]]
        member = unit.member(place[1])
        old = member.plan.share
        member.plan = replace(plan, share=old)
        others = tuple(m for m in unit.plan.members if m.model != plan.model)
        unit.plan = unit.plan.with_members((*others, plan))
        self._refit(unit, now)
        if plan.share == old:
            return

        def reopened(later: float) -> SimUnit:
            unit.reshare(member, plan.share, self._maker.times(unit.plan, plan))
            return unit

        self._stage.at(now + self._loading.start_s, reopened)

    def _refit(self, unit: SimUnit, now: float) -> None:
        """The unit's KV is what its weights leave now; floors follow."""
        grown = self._maker.kv_units(unit.plan) - unit.total
        grown = max(grown, -unit.free)  # what is in use stays
        unit.free += grown
        unit.total += grown
        self._maker.divide(unit.members, unit.total - unit.claimed)
        unit.rebalance(now)

    def _renew(self, unit: SimUnit, now: float) -> None:
        """The unit has other members: a policy made for them takes over."""
        self._maker.divide(unit.members, unit.total)
        unit.take_over(self._maker.policy(unit), now)

    def _route(self, model: ModelName, now: float) -> None:
        """Endpoints of what serves; notes for how long nothing does."""
        found = tuple(self._endpoints(model))
        self._stage.router.endpoints[model] = found
        if not found:
            self._unserved.setdefault(model, now)
        elif model in self._unserved:
            lasted = now - self._unserved.pop(model)
            self._unserved_s[model] = self._unserved_s.get(model, 0.0) + lasted

    def _endpoints(self, model: ModelName) -> Iterator[Endpoint]:
        for unit_id, unit in sorted(self._stage.units.items()):
            for member in unit.members:
                if member.model == model and not member.draining:
                    weight = planned_weight(member.plan.rate, member.plan.concurrency)
                    yield Endpoint(unit=unit_id, host="", port=0, weight=weight)

    # Telling

    def _log(self, change: _Change, now: float) -> MoveLog:
        unserved = dict(self._unserved_s)
        for model, since in self._unserved.items():
            unserved[model] = unserved.get(model, 0.0) + now - since
        steps = tuple(_told(step, change, unserved) for step in change.steps)
        return MoveLog(at=change.at, gpus_used=change.target.gpus_used, steps=steps)


def _told(step: PlanStep, change: _Change, unserved: Mapping[ModelName, float]) -> dict[str, Any]:
    """A step as a table shows it; `ready_s` after the plan was taken up, None if it is not yet."""
    found: dict[str, Any] = {"kind": step.kind.value, "reason": step.reason.value,
                             "unit": step.unit}  # fmt: skip
    if step.model is None:
        return found
    place = (step.unit, step.model)
    found["model"] = step.model
    if step.source is not None:
        found["source"] = step.source
    held = change.ready if place in change.starts else change.gone
    if place in change.starts or place in change.stops:
        found["ready_s"] = held[place] - change.at if place in held else None
    found["unserved_s"] = unserved.get(step.model, 0.0)
    return found


def _overlap(plan: Unit, node: str, gpus: tuple[int, ...]) -> bool:
    return plan.group.node == node and not set(gpus).isdisjoint(plan.group.gpus)
