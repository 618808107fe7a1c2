"""The placement search of the released MuxServe planner, switch by switch.

Greedy over mesh groups: LLMs by descending load go to the mesh of largest gain; the best group
wins. Kept as released for comparison; `mux_core.planners.default` is what the product uses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement

from mux_core.errors import SpecError
from mux_core.estimator.muxserve import (
    ACTIVATION_GB,
    GPU_GB,
    KV_FRACTION,
    Candidate,
    MeshScore,
    MuxServeEstimator,
    ReplayRules,
    Tenant,
)

NODE_SPLITS = {
    4: ((4,), (2, 2), (2, 1, 1), (1, 1, 1, 1)),
    6: ((4, 2), (4, 1, 1), (2, 2, 2), (2, 2, 1, 1), (2, 1, 1, 1, 1), (1,) * 6),
    8: ((8,), (4, 4), (4, 2, 2), (4, 2, 1, 1), (4, 1, 1, 1, 1), (2,) * 4, (2, 2, 2, 1, 1),
        (2, 2, 1, 1, 1, 1), (2,) + (1,) * 6, (1,) * 8),
}  # fmt: skip
FREE_GB_PER_GPU = 43.2
DEBIT_GB = 7.6
SM_BUDGET = 100
SM_OVERLOAD = 20


@dataclass(slots=True)
class Mesh:
    """One mesh during a greedy pass."""

    number: int
    gpus: int
    free_gb: float
    load: float = 0.0
    percent_left: int = SM_BUDGET
    members: list[tuple[Tenant, int]] = field(default_factory=list)
    score: MeshScore = field(default_factory=lambda: MeshScore(score=0.0, throughputs=()))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshResult:
    """One mesh of the result: members with their decode share and estimated throughput."""

    gpus: int
    members: tuple[tuple[Tenant, int], ...]
    throughputs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What the released search ends with; `score` is its own objective."""

    score: float
    meshes: tuple[MeshResult, ...]


class ReleasedSearch:
    """The search over mesh groups for one list of LLMs on `nodes` nodes of `node_gpus` GPUs."""

    def __init__(
        self, tenants: Sequence[Tenant], *, nodes: int, node_gpus: int, rules: ReplayRules
    ) -> None:
        if node_gpus not in NODE_SPLITS:
            raise SpecError(
                f"cluster: {node_gpus} GPUs per node; the released planner knows splits for "
                f"{sorted(NODE_SPLITS)}; use strategy default"
            )
        self._estimator = MuxServeEstimator(rules=rules)
        self._rules = rules
        self._splits = NODE_SPLITS[node_gpus]
        self._nodes = nodes
        self._gpus = nodes * node_gpus
        self._tenants = _placement_order(tenants)
        self._candidates = {
            (tenant.name, tensor): self._candidate(tenant, tensor)
            for tenant in tenants
            for tensor in tenant.model.table.tensors
            if tensor >= tenant.model.least_tensor
        }
        self._scores: dict[tuple[int, tuple[str, ...]], MeshScore] = {}

    def run(self) -> Iterator[ReplayResult]:
        """Each better group as it is found, in their order."""
        best = 0.0
        for group in self._groups():
            meshes = self._place(group)
            if meshes is None:
                continue
            score = self._total(meshes)
            if score > best:
                best = score
                yield ReplayResult(score=score, meshes=tuple(map(_result, meshes)))

    def _candidate(self, tenant: Tenant, tensor: int) -> Candidate:
        return self._estimator.candidate(tenant, tensor, self._candidate_kv(tenant, tensor))

    def _candidate_kv(self, tenant: Tenant, tensor: int) -> float:
        if not self._rules.occupied_kv:
            return KV_FRACTION * GPU_GB * tensor - tenant.model.weights_gb - ACTIVATION_GB
        weights = sum(other.model.weights_gb for other in self._tenants)
        occupied = weights + ACTIVATION_GB * len(self._tenants)
        return occupied / (GPU_GB * self._gpus) * GPU_GB * tensor

    def _groups(self) -> Iterator[tuple[int, ...]]:
        needed = max(tenant.model.least_tensor for tenant in self._tenants)
        for combination in combinations_with_replacement(self._splits, self._nodes):
            meshes = tuple(size for split in combination for size in split)
            if max(meshes) >= needed and len(meshes) <= len(self._tenants):
                yield meshes

    def _place(self, group: tuple[int, ...]) -> list[Mesh] | None:
        meshes = [Mesh(i, g, FREE_GB_PER_GPU * g) for i, g in enumerate(group)]
        ordered = list(meshes)
        previous = [0.0] * len(meshes)
        for tenant in self._tenants:
            ordered.sort(key=lambda mesh: (-mesh.load / mesh.gpus, mesh.free_gb), reverse=True)
            choice = self._choose(tenant, group, ordered, previous)
            if choice is None:
                return None
            position, gain, score = choice
            mesh = ordered[position]
            previous[position if self._rules.stale_mesh_index else mesh.number] += gain
            self._debit(mesh, tenant, score)
        return meshes

    def _choose(
        self, tenant: Tenant, group: tuple[int, ...], ordered: list[Mesh], previous: list[float]
    ) -> tuple[int, float, MeshScore] | None:
        """(position, gain, score) of the mesh this LLM joins; None when none fits."""
        best: tuple[int, float, MeshScore] | None = None
        for position, mesh in enumerate(ordered):
            candidate = self._candidates.get((tenant.name, mesh.gpus))
            if candidate is None or not _fits(mesh, tenant, candidate):
                continue
            score = self._score(mesh.gpus, [*mesh.members, (tenant, candidate.percent)])
            stale = self._rules.stale_mesh_index
            gain = score.score - previous[position if stale else mesh.number]
            if best is None or gain > best[1]:
                best = (position, gain, score)
            elif gain == best[1]:
                # The release compares with the mesh *generated* at this list position.
                rival = group[best[0]] if stale else ordered[best[0]].gpus
                if mesh.gpus < rival:
                    best = (position, gain, score)
        return best

    def _debit(self, mesh: Mesh, tenant: Tenant, score: MeshScore) -> None:
        percent = self._candidates[tenant.name, mesh.gpus].percent
        mesh.members.append((tenant, percent))
        mesh.free_gb -= tenant.model.weights_gb + DEBIT_GB
        mesh.percent_left -= percent
        mesh.load += tenant.rate * tenant.model.rate_scale
        mesh.score = score

    def _score(self, gpus: int, members: list[tuple[Tenant, int]]) -> MeshScore:
        key = (gpus, tuple(tenant.name for tenant, _ in members))
        if key not in self._scores:
            self._scores[key] = self._estimator.mesh_score(gpus, members)
        return self._scores[key]

    def _total(self, meshes: list[Mesh]) -> float:
        if not self._rules.uncapped_mean_score:
            return sum(mesh.score.score for mesh in meshes)
        rates = [sum(tenant.rate for tenant, _ in mesh.members) for mesh in meshes]
        weighted = sum(m.score.score * rate for m, rate in zip(meshes, rates, strict=True))
        return weighted / sum(rates)


def _fits(mesh: Mesh, tenant: Tenant, candidate: Candidate) -> bool:
    room = mesh.free_gb >= tenant.model.weights_gb
    return room and candidate.percent <= mesh.percent_left + SM_OVERLOAD


def _placement_order(tenants: Sequence[Tenant]) -> list[Tenant]:
    """Two stable sorts, as released: by (r*base, base), then by (r*scale, scale), descending."""
    order = sorted(
        tenants,
        key=lambda t: (t.rate * t.model.least_tensor, t.model.least_tensor),
        reverse=True,
    )
    return sorted(
        order, key=lambda t: (t.rate * t.model.rate_scale, t.model.rate_scale), reverse=True
    )


def _result(mesh: Mesh) -> MeshResult:
    return MeshResult(
        gpus=mesh.gpus, members=tuple(mesh.members), throughputs=mesh.score.throughputs
    )
