"""The released MuxServe planner as a strategy: its search, its units, its own numbers.

Rates above what a unit serves are stated as served by its estimator, uncapped, because its score
counts them so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mux_core.errors import SpecError
from mux_core.estimator.muxserve import GPU_GB, KV_FRACTION, ReplayRules, Tenant
from mux_core.estimator.reference import replay_tenant
from mux_core.estimator.unit import GroupKind
from mux_core.llm import Llm
from mux_core.placement import GpuGroup, GpuNode, KvQuota, Member, Placement, Share, Unit
from mux_core.planners.capacity import assign_groups
from mux_core.planners.forecast import summed
from mux_core.planners.released import DEBIT_GB, MeshResult, ReleasedSearch, ReplayResult
from mux_core.planning import MemberEstimate, PlacementProblem, Plan
from mux_core.units import GIB, Bytes, ModelName, Percent, UnitId

PREFILL_PERCENT = {1: 80, 2: 90}
"""Prefill share the release writes, by its rate scale (7B: 1, 13B: 2); 100 for larger ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlanner:
    """`muxserve-released` and `muxserve-fixed`. LLMs keep the order of the problem: it matters."""

    name: str = "muxserve-released"
    rules: ReplayRules = field(default_factory=ReplayRules)

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        tenants = [self._tenant(llm) for llm in problem.llms]
        nodes, per_node = uniform_nodes(problem.nodes, self.name)
        search = ReleasedSearch(tenants, nodes=nodes, node_gpus=per_node, rules=self.rules)
        found = False
        for result in search.run():
            found = True
            yield self._plan(problem, result)
        if not found:
            raise SpecError(
                f"strategy {self.name}: none of its mesh groups holds all {len(tenants)} LLMs on "
                f"{nodes} x {per_node} GPUs; use strategy default, or add GPUs"
            )

    def _tenant(self, llm: Llm) -> Tenant:
        if llm.profile is None:
            raise SpecError(f"strategy {self.name}: LLM {llm.name} has no profile; it replays "
                            "measured profiles only; use strategy default")  # fmt: skip
        tenant = replay_tenant(llm)
        if self.rules.fixed_lengths:
            return Tenant(name=tenant.name, model=tenant.model, rate=tenant.rate)
        return tenant

    def _plan(self, problem: PlacementProblem, result: ReplayResult) -> Plan:
        placement = place_meshes(problem, result)
        served = {
            tenant.name: throughput
            for mesh in result.meshes
            for (tenant, _), throughput in zip(mesh.members, mesh.throughputs, strict=True)
        }
        models = {
            llm.name: MemberEstimate(
                offered=llm.demand.rate, served=served.get(llm.name, 0.0), replicas=1
            )
            for llm in problem.llms
        }
        return Plan(
            strategy=self.name,
            proposed=placement,
            prediction=summed(models, placement.gpus_used),
        )


def uniform_nodes(nodes: Sequence[GpuNode], strategy: str) -> tuple[int, int]:
    """(nodes, GPUs per node). Raises SpecError where nodes differ, which the release cannot."""
    sizes = {node.gpus for node in nodes}
    if len(sizes) != 1:
        raise SpecError(f"strategy {strategy}: nodes of {sorted(sizes)} GPUs; it plans for equal "
                        "nodes only; use strategy default")  # fmt: skip
    return len(nodes), sizes.pop()


def place_meshes(
    problem: PlacementProblem, result: ReplayResult, percents: dict[str, int] | None = None
) -> Placement:
    """Its meshes on our nodes, empty ones left out; `percents` overrides its decode shares."""
    meshes = [mesh for mesh in result.meshes if mesh.members]
    node = problem.nodes[0]
    kinds = [GroupKind(gpus=mesh.gpus, gpu=node.gpu, memory=node.memory) for mesh in meshes]
    slots = {node.name: tuple(range(node.gpus)) for node in problem.nodes}
    groups = assign_groups(problem.nodes, slots, kinds)
    units = [
        _unit(UnitId(f"{problem.unit_prefix}{index}"), mesh, group, percents or {})
        for index, (mesh, group) in enumerate(zip(meshes, groups, strict=True))
    ]
    return Placement(units=tuple(sorted(units, key=lambda unit: unit.id)))


def _unit(unit_id: UnitId, mesh: MeshResult, group: GpuGroup, percents: dict[str, int]) -> Unit:
    quota = _kv_bytes(mesh)
    members = [
        Member(
            model=ModelName(tenant.name),
            replica=0,
            tensor=mesh.gpus,
            share=Share(
                prefill=Percent(PREFILL_PERCENT.get(tenant.model.rate_scale, 100)),
                decode=Percent(percents.get(tenant.name, percent)),
            ),
            kv=KvQuota(guaranteed=quota, limit=quota),
            rate=tenant.rate,
        )
        for tenant, percent in mesh.members
    ]
    return Unit(id=unit_id, group=group, members=tuple(sorted(members, key=lambda m: m.model)))


def _kv_bytes(mesh: MeshResult) -> Bytes:
    """The KV fraction it emits per GPU, (80 - sum W/g - 7.6 n)/80, divided among the members."""
    weights = sum(tenant.model.weights_gb for tenant, _ in mesh.members)
    per_gpu = max(0.0, GPU_GB - weights / mesh.gpus - DEBIT_GB * len(mesh.members))
    whole = min(per_gpu, KV_FRACTION * GPU_GB) * mesh.gpus
    return Bytes(int(whole * GIB / len(mesh.members)))
