"""Where LLMs are: GPU groups, units, members; values that compare, verify and print."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from mux_core.errors import InvariantError, SpecError
from mux_core.units import Bytes, ModelName, NodeName, Percent, UnitId


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class GpuNode:
    """One machine of the inventory: `gpus` equal slots of `memory` bytes each.

    `gpu` names the GPU type for the cost model (`a100-80gb`, `cpu`).
    """

    name: NodeName
    gpus: int
    memory: Bytes
    gpu: str = "cpu"

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.memory < 1:
            raise SpecError(
                f"node {self.name}: {self.gpus} GPUs of {self.memory} bytes; both at least 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class GpuGroup:
    """1, 2, 4 or 8 GPUs of one node, by index (MuxServe's mesh)."""

    node: NodeName
    gpus: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.gpus or tuple(sorted(set(self.gpus))) != self.gpus:
            raise InvariantError(f"GPU group on {self.node}: indices {self.gpus} not ascending")

    @property
    def size(self) -> int:
        return len(self.gpus)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Share:
    """SM percentage per phase of a member, of one GPU: a ceiling, not a reservation."""

    prefill: Percent = Percent(100)
    decode: Percent = Percent(100)

    def __post_init__(self) -> None:
        for phase, value in (("prefill", self.prefill), ("decode", self.decode)):
            if not 1 <= value <= 100:
                raise SpecError(f"share: {phase} percent {value}; 1 to 100")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class KvQuota:
    """KV bytes of a member, over its GPUs: never below `guaranteed`, never above `limit`."""

    guaranteed: Bytes
    limit: Bytes

    def __post_init__(self) -> None:
        if not 0 <= self.guaranteed <= self.limit:
            raise SpecError(f"KV quota: guaranteed {self.guaranteed} exceeds limit {self.limit}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Member:
    """One replica of one LLM in a unit; `rate` is the demand sent to it, requests/s.

    `concurrency`: requests that decode there at a time, on average, as predicted (Little's law); 0
    where nothing predicts it.
    """

    model: ModelName
    replica: int
    tensor: int
    share: Share
    kv: KvQuota
    rate: float = 0.0
    concurrency: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A GPU group and the members on it; one pod (MuxServe's LLM unit)."""

    id: UnitId
    group: GpuGroup
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if tuple(sorted(self.members, key=_member_key)) != self.members:
            raise InvariantError(f"unit {self.id}: members not in (model, replica) order")
        models = [member.model for member in self.members]
        if len(set(models)) != len(models):
            raise InvariantError(f"unit {self.id}: two replicas of one LLM share it")

    @property
    def models(self) -> frozenset[ModelName]:
        return frozenset(member.model for member in self.members)

    def with_members(self, members: tuple[Member, ...]) -> Self:
        """The same unit holding `members`, brought into order."""
        return replace(self, members=tuple(sorted(members, key=_member_key)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The set of units, ordered by id: a value to compare, verify and score."""

    units: tuple[Unit, ...] = ()

    def __post_init__(self) -> None:
        ids = [unit.id for unit in self.units]
        if sorted(set(ids)) != ids:
            raise InvariantError(f"placement: unit ids {ids} not unique and ascending")

    def members(self) -> Iterator[tuple[Unit, Member]]:
        """Every (unit, member), in order."""
        for unit in self.units:
            for member in unit.members:
                yield unit, member

    def unit(self, unit_id: UnitId) -> Unit | None:
        return next((unit for unit in self.units if unit.id == unit_id), None)

    @property
    def gpus_used(self) -> int:
        """GPUs in groups that hold at least one member."""
        return len({(u.group.node, gpu) for u in self.units if u.members for gpu in u.group.gpus})

    def with_unit(self, unit: Unit) -> Self:
        """This placement with `unit` added, or put in place of the one with its id."""
        others = [other for other in self.units if other.id != unit.id]
        return replace(self, units=tuple(sorted([*others, unit], key=lambda u: u.id)))

    def without_unit(self, unit_id: UnitId) -> Self:
        return replace(self, units=tuple(unit for unit in self.units if unit.id != unit_id))


def _member_key(member: Member) -> tuple[str, int]:
    return (member.model, member.replica)
