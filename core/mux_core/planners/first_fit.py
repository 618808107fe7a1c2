"""First fit: packs by memory and measured demand, and only ever adds.

Members stay where they are. A new replica goes to the running unit with room (weights and KV
floor) that carries the least load, else to the first free GPUs. It never moves, so its plans are
additive; it knows no service levels. Other strategies answer the same protocol.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from mux_core.engine import kv_geometry
from mux_core.errors import SpecError
from mux_core.llm import Llm
from mux_core.placement import (
    GpuGroup,
    GpuNode,
    KvQuota,
    Member,
    Placement,
    Share,
    Unit,
)
from mux_core.planning import (
    PlacementProblem,
    Plan,
    PlanReason,
    PlanStep,
    Prediction,
    StepKind,
    Unplaced,
)
from mux_core.units import Bytes, ModelName, Percent, UnitId, format_bytes
from mux_core.unitspec import UNIT_BYTES

FLOOR_TOKENS: Final = 2048
"""KV floor of a model that asks for none: room for one such sequence, or its longest."""
SHARED_DECODE: Final = Percent(50)
"""Decode keeps its speed on half of the SMs (MuxServe, figure 4); two may then overlap."""
CPU_PREFILL: Final = Percent(50)
"""On a CPU no part of a step fills all cores: two steps on halves beat one after the other
(`benchmarks/bench_up_vs_separate.py`, where prefill at 100 % served 0.6 times the rate)."""
_NO_FLOOR: Final = (SpecError, ArithmeticError, ValueError)
"""A geometry without a KV layout; it must cost its own model the place, not the pool its plan."""


class FirstFit:
    """The additive strategy; see the module."""

    name = "first-fit"

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        """One plan."""
        packing = _Packing(problem)
        for llm in problem.llms:
            packing.keep(llm)
        for llm in sorted(problem.llms, key=lambda x: (-x.priority, x.name)):
            packing.add(llm)
        yield packing.plan(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """What one replica takes of each of its `tensor` GPUs."""

    tensor: int
    weights: int
    floor: int

    @property
    def total(self) -> int:
        return self.weights + self.floor


def kv_floor(llm: Llm, *, tensor: int) -> int:
    """KV bytes of one GPU that are always the model's: asked for, or one sequence, whole rows."""
    if llm.geometry is None:
        return -(-llm.sharing.kv_request // tensor)
    shape = llm.geometry
    layout = kv_geometry(layers=shape.layers, kv_heads=max(1, shape.kv_heads // tensor),
                         head_dim=shape.head_dim, dtype=shape.dtype,
                         unit_bytes=UNIT_BYTES)  # fmt: skip
    row_bytes = layout.row_units * UNIT_BYTES
    if llm.sharing.kv_request:
        rows = -(-(llm.sharing.kv_request // tensor) // row_bytes)
    else:
        rows = layout.rows_for(min(shape.max_model_len, FLOOR_TOKENS))
    return rows * row_bytes


def _weights(llm: Llm, *, tensor: int) -> int:
    """Weights on each GPU, in whole head units."""
    per_gpu = math.ceil(llm.weight_bytes / tensor)
    return math.ceil(per_gpu / UNIT_BYTES) * UNIT_BYTES


class _Packing:
    """The placement being made; changes only by `keep` and `add`."""

    def __init__(self, problem: PlacementProblem) -> None:
        self._problem = problem
        self._llms = {llm.name: llm for llm in problem.llms}
        self._nodes = {node.name: node for node in problem.nodes}
        self._units = {
            unit.id: unit.with_members(tuple(m for m in unit.members if m.model in self._llms))
            for unit in problem.current.units
            if unit.group.node in self._nodes
        }
        self._steps: list[PlanStep] = []
        self._unplaced: list[Unplaced] = []

    def keep(self, llm: Llm) -> None:
        """Keeps at most `max_replicas` of the running replicas, lowest numbers first."""
        running = sorted(
            (member.replica, unit.id) for unit in self._units.values() for member in unit.members
            if member.model == llm.name
        )  # fmt: skip
        for _, unit_id in running[llm.max_replicas :]:
            unit = self._units[unit_id]
            rest = tuple(m for m in unit.members if m.model != llm.name)
            self._units[unit_id] = unit.with_members(rest)
        for _, unit_id in running[: llm.max_replicas]:
            self._follow(llm, self._units[unit_id])

    def _follow(self, llm: Llm, unit: Unit) -> None:
        """Brings share and KV floor of a running member to what its spec now says, if it fits."""
        member = next(m for m in unit.members if m.model == llm.name)
        try:
            floor = kv_floor(llm, tensor=member.tensor) * member.tensor
        except _NO_FLOOR:
            floor = member.kv.guaranteed
        if floor - member.kv.guaranteed > self._free(unit) * member.tensor:
            floor = member.kv.guaranteed
        quota = KvQuota(guaranteed=Bytes(floor), limit=Bytes(max(floor, member.kv.limit)))
        changed = replace(member, share=self._share(llm, unit), kv=quota)
        rest = tuple(m for m in unit.members if m.model != llm.name)
        self._units[unit.id] = unit.with_members((*rest, changed))

    def add(self, llm: Llm) -> None:
        """Places the replicas that are still missing, or says why not."""
        placed = {m.replica for u in self._units.values() for m in u.members if m.model == llm.name}
        for replica in range(llm.max_replicas):
            if len(placed) >= llm.min_replicas:
                return
            if replica not in placed:
                if not self._place(llm, replica):
                    return
                placed.add(replica)

    def plan(self, name: str) -> Plan:
        units = [self._sized(unit) for unit in self._units.values() if unit.members]
        proposed = Placement(units=tuple(sorted(units, key=lambda unit: unit.id)))
        steps = (*self._removals(proposed), *self._steps)
        offered = sum(llm.demand.rate for llm in self._problem.llms)
        prediction = Prediction(goodput=offered, worst_ratio=1.0, gpus_used=proposed.gpus_used)
        return Plan(
            strategy=name, proposed=proposed, prediction=prediction, steps=steps,
            unplaced=tuple(self._unplaced),
            notes=("first fit predicts no service levels; goodput is what is offered",),
        )  # fmt: skip

    def _place(self, llm: Llm, replica: int) -> bool:
        try:
            needs = [self._need(llm, tensor) for tensor in self._tensors(llm)]
        except _NO_FLOOR as error:
            self._unplaced.append(Unplaced(
                model=llm.name, reason=PlanReason.DOES_NOT_FIT,
                message=f"LLM {llm.name}: its KV cannot be laid out: {error}"))  # fmt: skip
            return False
        for need in needs:
            unit = self._running_with_room(llm, need)
            if unit is not None:
                self._join(llm, replica, need, unit, PlanReason.KEEP_IN_PLACE)
                return True
        for need in needs:
            group = self._free_group(need)
            if group is not None:
                self._create(llm, replica, need, group)
                return True
        self._refuse(llm, needs)
        return False

    def _tensors(self, llm: Llm) -> tuple[int, ...]:
        sizes = self._problem.policy.group_sizes
        return tuple(t for t in sorted(llm.allowed_tensor or sizes) if t in sizes)

    def _need(self, llm: Llm, tensor: int) -> _Need:
        return _Need(tensor=tensor, weights=_weights(llm, tensor=tensor),
                     floor=kv_floor(llm, tensor=tensor))  # fmt: skip

    def _running_with_room(self, llm: Llm, need: _Need) -> Unit | None:
        if llm.sharing.exclusive or not self._problem.policy.allow_sharing:
            return None
        fitting = [u for u in self._units.values() if u.members and self._accepts(u, llm, need)]
        return min(fitting, key=lambda unit: (self._load(unit), unit.id), default=None)

    def _accepts(self, unit: Unit, llm: Llm, need: _Need) -> bool:
        if unit.group.size != need.tensor or llm.name in unit.models:
            return False
        if (llm.name, unit.id) in self._problem.barred:
            return False
        others = [self._llms[member.model].sharing for member in unit.members]
        if any(o.exclusive or o.tenant_group != llm.sharing.tenant_group for o in others):
            return False
        return self._free(unit) >= need.total

    def _free(self, unit: Unit) -> int:
        """Bytes of each GPU not taken by weights and KV floors."""
        memory = self._nodes[unit.group.node].memory
        taken = (_weights(self._llms[m.model], tensor=m.tensor) + m.kv.guaranteed // m.tensor
                 for m in unit.members)  # fmt: skip
        return memory - sum(taken)

    def _load(self, unit: Unit) -> float:
        """Offered work of a unit: tokens/s times weight bytes."""
        return sum(
            llm.demand.rate * (llm.demand.prompt_tokens + llm.demand.output_tokens)
            * llm.weight_bytes
            for llm in (self._llms[member.model] for member in unit.members)
        )  # fmt: skip

    def _free_group(self, need: _Need) -> GpuGroup | None:
        limit = self._problem.policy.gpu_limit
        taken = {(u.group.node, gpu) for u in self._units.values() if u.members
                 for gpu in u.group.gpus}  # fmt: skip
        if limit is not None and len(taken) + need.tensor > limit:
            return None
        for node in self._problem.nodes:
            free = [gpu for gpu in range(node.gpus) if (node.name, gpu) not in taken]
            if node.memory >= need.total and len(free) >= need.tensor:
                return GpuGroup(node=node.name, gpus=tuple(free[: need.tensor]))
        return None

    def _create(self, llm: Llm, replica: int, need: _Need, group: GpuGroup) -> None:
        unit = Unit(id=self._new_id(), group=group, members=())
        self._units[unit.id] = unit
        self._steps.append(PlanStep(kind=StepKind.CREATE_UNIT, reason=PlanReason.FITS_FREE,
                                    unit=unit.id))  # fmt: skip
        self._join(llm, replica, need, unit, PlanReason.FITS_FREE)

    def _new_id(self) -> UnitId:
        used = set(self._units) | {unit.id for unit in self._problem.current.units}
        index = 0
        while f"{self._problem.unit_prefix}{index}" in used:
            index += 1
        return UnitId(f"{self._problem.unit_prefix}{index}")

    def _join(
        self, llm: Llm, replica: int, need: _Need, unit: Unit, reason: PlanReason
    ) -> None:  # fmt: skip
        floor = Bytes(need.floor * need.tensor)
        member = Member(
            model=llm.name, replica=replica, tensor=need.tensor,
            share=self._share(llm, unit), kv=KvQuota(guaranteed=floor, limit=floor),
        )  # fmt: skip
        self._units[unit.id] = unit.with_members((*unit.members, member))
        self._steps.append(PlanStep(
            kind=StepKind.START_ENGINE, reason=reason, unit=unit.id, model=llm.name,
            message=f"takes {format_bytes(need.weights)} of weights and "
            f"{format_bytes(need.floor)} of KV floor per GPU"))  # fmt: skip

    def _share(self, llm: Llm, unit: Unit) -> Share:
        most = llm.sharing.max_percent
        if llm.sharing.exclusive:
            return Share(prefill=most, decode=most)
        least = llm.sharing.min_percent or Percent(1)
        prefill = CPU_PREFILL if self._nodes[unit.group.node].gpu == "cpu" else Percent(100)
        return Share(prefill=min(most, max(prefill, least)),
                     decode=min(most, max(SHARED_DECODE, least)))  # fmt: skip

    def _sized(self, unit: Unit) -> Unit:
        """Members borrow up to what weights and the others' floors leave; rates brought up."""
        free = self._free(unit)
        counts: dict[ModelName, int] = {}
        for other in self._units.values():
            for member in other.members:
                counts[member.model] = counts.get(member.model, 0) + 1
        return unit.with_members(tuple(
            replace(member, kv=self._quota(member, free),
                    rate=self._llms[member.model].demand.rate / counts[member.model])
            for member in unit.members
        ))  # fmt: skip

    def _quota(self, member: Member, free: int) -> KvQuota:
        most = member.kv.guaranteed + max(0, free) * member.tensor
        asked = self._llms[member.model].sharing.kv_limit
        limit = most if asked is None else max(member.kv.guaranteed, min(most, asked))
        return KvQuota(guaranteed=member.kv.guaranteed, limit=Bytes(limit))

    def _refuse(self, llm: Llm, needs: list[_Need]) -> None:
        if not needs:
            self._unplaced.append(Unplaced(
                model=llm.name, reason=PlanReason.DOES_NOT_FIT,
                message=f"LLM {llm.name}: allowed tensor sizes {list(llm.allowed_tensor)} are not "
                f"among the pool's group sizes {list(self._problem.policy.group_sizes)}; change "
                "parallelism or groupSizes"))  # fmt: skip
            return
        need = min(needs, key=lambda n: n.total)
        asked = (f"LLM {llm.name} needs {format_bytes(need.total)} on each of {need.tensor} GPU"
                 f"{'s' if need.tensor > 1 else ''} (weights {format_bytes(need.weights)}, KV "
                 f"floor {format_bytes(need.floor)})")  # fmt: skip
        self._unplaced.append(self._why_not(llm, need, asked))

    def _why_not(self, llm: Llm, need: _Need, asked: str) -> Unplaced:
        largest = max((n.memory for n in self._fitting_nodes(need)), default=0)
        if largest < need.total:
            return Unplaced(
                model=llm.name, reason=PlanReason.DOES_NOT_FIT,
                message=f"{asked}; the largest slot of the pool has {format_bytes(largest)}; "
                "use a smaller model, more GPUs per replica or larger slots")  # fmt: skip
        roomy = [u for u in self._units.values() if u.members and self._free(u) >= need.total]
        if any(self._tenants(unit) != {llm.sharing.tenant_group} for unit in roomy):
            return Unplaced(
                model=llm.name, reason=PlanReason.TENANT_CONFLICT,
                message=f"{asked}; only units of other tenant groups have room and no slot is "
                f"free for group {llm.sharing.tenant_group!r}; add a slot")  # fmt: skip
        room = max((self._free(u) for u in self._units.values() if u.members), default=0)
        return Unplaced(
            model=llm.name, reason=PlanReason.NO_CAPACITY,
            message=f"{asked}; no slot is free and the roomiest unit has {format_bytes(room)} "
            "left; delete a model, lower a KV floor or add a slot")  # fmt: skip

    def _fitting_nodes(self, need: _Need) -> Iterator[GpuNode]:
        return (node for node in self._problem.nodes if node.gpus >= need.tensor)

    def _tenants(self, unit: Unit) -> set[str]:
        return {self._llms[member.model].sharing.tenant_group for member in unit.members}

    def _removals(self, proposed: Placement) -> Iterator[PlanStep]:
        for unit in self._problem.current.units:
            kept = proposed.unit(unit.id)
            for member in unit.members:
                if kept is None or member.model not in kept.models:
                    yield PlanStep(kind=StepKind.STOP_ENGINE, reason=PlanReason.SPEC_CHANGED,
                                   unit=unit.id, model=member.model)  # fmt: skip
            if kept is None:
                yield PlanStep(kind=StepKind.DELETE_UNIT, reason=PlanReason.SPEC_CHANGED,
                               unit=unit.id)  # fmt: skip


__all__ = ["FLOOR_TOKENS", "SHARED_DECODE", "FirstFit", "kv_floor"]
