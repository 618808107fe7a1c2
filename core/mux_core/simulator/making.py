"""From a plan's units to units on the clock."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mux_core.costmodel.profile import Profile, profile_of
from mux_core.errors import SpecError
from mux_core.estimator.unit import GroupKind
from mux_core.llm import Llm
from mux_core.placement import Member, Unit
from mux_core.planners.assembly import kind_of
from mux_core.planning import PlacementProblem
from mux_core.simulator.cores import Cores, CpuNode
from mux_core.simulator.kv import kv_units, row_layout
from mux_core.simulator.member import SimMember
from mux_core.simulator.policy import PolicyFactory, Queue, UnitPolicy, UnitSetting
from mux_core.simulator.settings import Settings
from mux_core.simulator.times import StepTimes, step_times
from mux_core.simulator.unit import Calendar, SimUnit
from mux_core.units import ModelName, NodeName


@dataclass(slots=True, kw_only=True)
class Maker:
    """Makes units and members of one problem's LLMs and GPUs. Profiles are read once."""

    problem: PlacementProblem
    policy_factory: PolicyFactory
    settings: Settings
    calendar: Calendar
    settle_at: Callable[[float, Cores], None]
    llms: dict[ModelName, Llm] = field(init=False)
    _profiles: dict[tuple[object, str], Profile] = field(default_factory=dict)
    _nodes: dict[NodeName, CpuNode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.llms = {llm.name: llm for llm in self.problem.llms}

    def unit(self, plan: Unit, now: float) -> SimUnit:
        """A unit with all of its members."""
        unit = self._bare(plan)
        unit.members = tuple(self.member(plan, member) for member in plan.members)
        unit.total = unit.free = self.kv_units(plan)
        self.divide(unit.members, unit.total)
        unit.take_over(self.policy(unit), now)
        return unit

    def empty_unit(self, plan: Unit) -> SimUnit:
        """The unit before any of its members is there."""
        return self._bare(plan.with_members(()))

    def _bare(self, plan: Unit) -> SimUnit:
        return SimUnit(plan, calendar=self.calendar, interference=self.settings.interference,
                       node=self._node(plan.group.node))  # fmt: skip

    def _node(self, name: NodeName) -> CpuNode | None:
        """The cores that the units of a node share; None for GPUs."""
        if self.settings.cpu is None:
            return None
        if name not in self._nodes:
            self._nodes[name] = CpuNode(self.settings.cpu, self.settle_at)
        return self._nodes[name]

    def policy(self, unit: SimUnit) -> UnitPolicy:
        """A policy for the members that the unit has now."""
        layouts = {member.model: member.layout for member in unit.members}
        return self.policy_factory(UnitSetting(
            unit=unit.plan, kind=self.kind(unit.plan), llms=self.llms, kv_units=unit.total,
            row_units={model: layout.row_units for model, layout in layouts.items()},
            block_tokens={model: layout.block_tokens for model, layout in layouts.items()},
        ))  # fmt: skip

    def member(self, unit: Unit, plan: Member) -> SimMember:
        kind, llm = self.kind(unit), self.llms[plan.model]
        layout = row_layout(llm, kind, unit_bytes=self.settings.unit_bytes,
                            block_tokens=self.settings.block_tokens)  # fmt: skip
        view = Queue(None, plan.rate, llm.demand.prompt_tokens, llm.demand.output_tokens)
        return SimMember(plan, self.times(unit, plan), layout, view, priority=llm.priority)

    def times(self, unit: Unit, plan: Member) -> StepTimes:
        kind, llm = self.kind(unit), self.llms[plan.model]
        key = (llm.profile or llm.geometry, kind.gpu)
        if key not in self._profiles:
            self._profiles[key] = profile_of(llm, kind.gpu, self.settings.tables)
        return step_times(llm, kind, plan.share, self._profiles[key])

    def kind(self, unit: Unit) -> GroupKind:
        """The unit's GPUs. Raises SpecError where the problem lacks them, or one of its LLMs."""
        kind = kind_of(self.problem, unit.group)
        missing = sorted(unit.models - self.llms.keys())
        if kind is None or missing:
            subject = f"LLM {missing[0]}" if missing else f"node {unit.group.node}"
            raise SpecError(f"plan: unit {unit.id} needs {subject}, which the workload lacks; plan "
                            "for this workload")  # fmt: skip
        return kind

    def kv_units(self, plan: Unit) -> int:
        """Head units that KV has beside the weights of the plan's members."""
        return kv_units(plan, self.kind(plan), self.llms, self.settings.kv,
                        unit_bytes=self.settings.unit_bytes)  # fmt: skip

    def divide(self, members: Iterable[SimMember], total: int) -> None:
        """Floors and limits as planned; floors that exceed the unit's KV shrink in proportion."""
        size, part = self.settings.unit_bytes, self.settings.guaranteed
        asked = {m: int(m.plan.kv.guaranteed * part) // size for m in members}
        shrink = min(1.0, total / max(1, sum(asked.values())))
        for member, units in asked.items():
            member.floor = int(units * shrink)
            member.limit = min(max(member.plan.kv.limit // size, member.floor), total)
            member.changed()
