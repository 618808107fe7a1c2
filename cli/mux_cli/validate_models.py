"""What running units are to the estimator and the simulator: their members, as they really run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mux_cli.validate_unit import RunningUnit
from mux_core.costmodel.interference import DEFAULT_INTERFERENCE, Interference
from mux_core.costmodel.profile_set import CpuWork
from mux_core.costmodel.sources import Costs, ProfileCatalog, Source, choose_costs
from mux_core.errors import SpecError
from mux_core.estimator.unit import Ask, GroupKind
from mux_core.llm import Llm
from mux_core.placement import GpuGroup, GpuNode, Placement, Unit
from mux_core.planning import PlacementProblem
from mux_core.problem import planned_member
from mux_core.units import Bytes, ModelName, NodeName, UnitId
from mux_core.unitspec import Device, UnitSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The running units as one placement of the manifests' models, each with its costs.

    `rates` are the manifests' or those of the command line. `cpu`: the cores that steps share,
    None without a profile. `yardstick_s`: what the yardstick took when costs were measured; 0 where
    nobody knows.
    """

    problem: PlacementProblem
    placement: Placement
    costs: Costs
    interference: Interference
    cpu: CpuWork | None
    yardstick_s: float
    unit_bytes: int
    rates: Mapping[ModelName, float]

    @property
    def sources(self) -> Mapping[ModelName, Source]:
        return self.costs.sources

    def asks(self, unit: Unit, load: float) -> tuple[GroupKind, tuple[Ask, ...]]:
        """What the estimator is asked of one unit at a part of the rates."""
        nodes = {node.name: node for node in self.problem.nodes}
        node = nodes[unit.group.node]
        llms = {llm.name: llm for llm in self.problem.llms}
        kind = GroupKind(gpus=unit.group.size, gpu=node.gpu, memory=node.memory)
        return kind, tuple(
            Ask(llm=llms[member.model], rate=load * self.rates[member.model], share=member.share)
            for member in unit.members
        )

    def slowed(self, times: float) -> "Stage":
        """The same where everything takes that many times as long."""
        tables = {name: table.slowed(times) for name, table in self.costs.tables.items()}
        cpu = self.cpu and replace(self.cpu, unit=self.cpu.unit.slowed(times))
        return replace(self, costs=replace(self.costs, tables=tables), cpu=cpu)


def make_stage(
    units: Sequence[RunningUnit], llms: Sequence[Llm], catalog: ProfileCatalog | None,
    rates: Mapping[ModelName, float],
) -> Stage:  # fmt: skip
    """The stage of units that run. SpecError where a model is in none of them."""
    gpu = _gpu(units)
    nodes = tuple(_node(unit.spec, gpu) for unit in units)
    placement = Placement(units=tuple(_unit(unit.spec) for unit in units))
    placed = {member.model for _, member in placement.members()}
    for llm in llms:
        if llm.name not in placed:
            raise SpecError(f"model {llm.name}: is in no unit; `muxserve up` with the same "
                            "manifests says why")  # fmt: skip
    costs = choose_costs(llms, nodes, catalog, {})
    return Stage(
        problem=PlacementProblem(now=0.0, nodes=nodes, llms=costs.llms), placement=placement,
        costs=costs, rates=rates,
        interference=catalog.interference if catalog else DEFAULT_INTERFERENCE,
        cpu=catalog.cpu if catalog else None,
        yardstick_s=catalog.profiles[0].made.yardstick_s if catalog else 0.0,
        unit_bytes=units[0].spec.unit_bytes,
    )  # fmt: skip


def _gpu(units: Sequence[RunningUnit]) -> str:
    if any(unit.spec.device is not Device.CPU for unit in units):
        raise SpecError("validate: a unit runs on CUDA; only CPU units are compared so far")
    return "cpu"


def _node(spec: UnitSpec, gpu: str) -> GpuNode:
    """A node of the unit's own: what it may hold is what it was given."""
    return GpuNode(name=NodeName(f"of-{spec.unit}"), gpus=spec.gpus, gpu=gpu,
                   memory=Bytes(spec.memory_bytes))  # fmt: skip


def _unit(spec: UnitSpec) -> Unit:
    group = GpuGroup(node=NodeName(f"of-{spec.unit}"), gpus=tuple(range(spec.gpus)))
    unit = Unit(id=UnitId(spec.unit), group=group, members=())
    return unit.with_members(tuple(planned_member(member) for member in spec.members))
