"""How many groups of each size the nodes hold, and which GPUs each of them gets.

Group sizes are powers of two, so each divides the next. Then placing a group of s GPUs costs every
smaller size exactly s/s' places wherever it goes, and a multiset of groups fits if and only if for
every size the larger and equal groups, counted in it, fit: a search need not choose nodes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mux_core.errors import InvariantError
from mux_core.estimator.unit import GroupKind
from mux_core.placement import GpuGroup, GpuNode
from mux_core.units import NodeName

ENDLESS = 1_000_000
"""Clusters beside each other that hold whatever is asked of one."""

Slots = Mapping[NodeName, tuple[int, ...]]
"""Free GPU indices by node."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Places for groups, by GPU class and size; `limit` caps the GPUs used in all."""

    kinds: tuple[GroupKind, ...]
    places: Mapping[GroupKind, int]
    limit: int

    def holds(self, counts: Mapping[GroupKind, int]) -> bool:
        """Do these groups fit side by side?"""
        if sum(kind.gpus * count for kind, count in counts.items()) > self.limit:
            return False
        used: dict[tuple[str, int], int] = {}
        for kind in reversed(self.kinds):
            key = (kind.gpu, kind.memory)
            used[key] = used.get(key, 0) + kind.gpus * counts.get(kind, 0)
            if used[key] > self.places[kind] * kind.gpus:
                return False
        return True

    def endless(self) -> "Capacity":
        """The same groups, as many as anything takes: what fits knows nothing of the cluster."""
        places = {kind: count * ENDLESS for kind, count in self.places.items()}
        return replace(self, places=places, limit=ENDLESS)


def capacity_of(
    nodes: Sequence[GpuNode],
    sizes: Iterable[int],
    *,
    limit: int | None,
    slots: Slots | None = None,
) -> Capacity:
    """Capacity of the free GPUs (`slots`; all when None) under the allowed group sizes."""
    places: dict[GroupKind, int] = {}
    total = 0
    for node in nodes:
        free = node.gpus if slots is None else len(slots.get(node.name, ()))
        total += free
        for size in sizes:
            kind = GroupKind(gpus=size, gpu=node.gpu, memory=node.memory)
            if free >= size:
                places[kind] = places.get(kind, 0) + free // size
    kinds = tuple(sorted(places))
    return Capacity(kinds, places, total if limit is None else min(limit, total))


def assign_groups(
    nodes: Sequence[GpuNode], slots: Slots, kinds: Sequence[GroupKind]
) -> list[GpuGroup]:
    """One group per kind, in the order given; larger ones choose first, on the fullest node."""
    free = {node.name: list(slots.get(node.name, ())) for node in nodes}
    by_class: dict[tuple[str, int], list[GpuNode]] = {}
    for node in sorted(nodes, key=lambda node: node.name):
        by_class.setdefault((node.gpu, node.memory), []).append(node)
    groups: dict[int, GpuGroup] = {}
    for index in sorted(range(len(kinds)), key=lambda i: (-kinds[i].gpus, i)):
        kind = kinds[index]
        candidates = [
            node for node in by_class[kind.gpu, kind.memory] if len(free[node.name]) >= kind.gpus
        ]
        if not candidates:
            raise InvariantError(f"group of {kind.gpus} {kind.gpu}: promised place is not there")
        # First fit by name keeps whole nodes free and is exact for sizes that divide each other.
        node = candidates[0]
        taken = free[node.name][: kind.gpus]
        free[node.name] = free[node.name][kind.gpus :]
        groups[index] = GpuGroup(node=node.name, gpus=tuple(sorted(taken)))
    return [groups[index] for index in range(len(kinds))]
