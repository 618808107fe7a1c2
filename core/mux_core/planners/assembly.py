"""From bins to a placement: node, GPU indices, unit ids and replica numbers, few of them changed.

A bin continues the unit it came from; a new bin takes over the freed unit of its kind with which it
shares most LLMs, so that they need not move; only then are free GPUs and fresh ids drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome, UnitEstimator
from mux_core.footprint import kv_floor, weight_floor
from mux_core.llm import Llm
from mux_core.placement import GpuGroup, KvQuota, Member, Placement, Unit
from mux_core.planners.capacity import assign_groups
from mux_core.planning import PlacementProblem
from mux_core.units import Bytes, ModelName, NodeName, UnitId
from mux_core.unitspec import UNIT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One unit before it has a place: its kind, its asks, and the unit it continues."""

    kind: GroupKind
    asks: tuple[Ask, ...]
    continues: UnitId | None = None


def place_drafts(
    problem: PlacementProblem, drafts: Sequence[Draft], estimator: UnitEstimator
) -> Placement:
    """The placement of `drafts` on the problem's nodes."""
    ids, groups = _groups(problem, _continued(problem, drafts))
    numbers = _replica_numbers(problem, drafts, ids)
    guaranteed = {unit.id: {m.model: m.kv.guaranteed for m in unit.members}
                  for unit in problem.current.units}  # fmt: skip
    units = [
        _unit(ids[index], groups[index], draft, numbers, guaranteed.get(ids[index], {}), estimator)
        for index, draft in enumerate(drafts)
    ]
    return Placement(units=tuple(sorted(units, key=lambda unit: unit.id)))


def kind_of(problem: PlacementProblem, group: GpuGroup) -> GroupKind | None:
    """The kind of a group of the current placement; None when its node is gone."""
    for node in problem.nodes:
        if node.name == group.node:
            return GroupKind(gpus=group.size, gpu=node.gpu, memory=node.memory)
    return None


def _continued(problem: PlacementProblem, drafts: Sequence[Draft]) -> list[Draft]:
    taken = {draft.continues for draft in drafts if draft.continues is not None}
    free = [unit for unit in problem.current.units if unit.id not in taken]
    overlaps = []
    for index, draft in enumerate(drafts):
        if draft.continues is not None:
            continue
        models = {ask.llm.name for ask in draft.asks}
        for unit in free:
            shared = len(models & unit.models)
            if any((model, unit.id) in problem.barred for model in models):
                continue
            if shared and kind_of(problem, unit.group) == draft.kind:
                overlaps.append((-shared, unit.id, index))
    result = list(drafts)
    used: set[UnitId] = set()
    for _, unit_id, index in sorted(overlaps):
        if unit_id not in used and result[index].continues is None:
            used.add(unit_id)
            draft = result[index]
            result[index] = Draft(kind=draft.kind, asks=draft.asks, continues=unit_id)
    return result


def _groups(
    problem: PlacementProblem, drafts: Sequence[Draft]
) -> tuple[list[UnitId], list[GpuGroup]]:
    """Unit id and GPUs of each draft."""
    kept = {unit.id: unit for unit in problem.current.units}
    held = {
        (kept[draft.continues].group.node, gpu)
        for draft in drafts
        if draft.continues is not None
        for gpu in kept[draft.continues].group.gpus
    }
    slots: dict[NodeName, tuple[int, ...]] = {
        node.name: tuple(gpu for gpu in range(node.gpus) if (node.name, gpu) not in held)
        for node in problem.nodes
    }
    fresh = [index for index, draft in enumerate(drafts) if draft.continues is None]
    assigned = assign_groups(problem.nodes, slots, [drafts[index].kind for index in fresh])
    by_index = dict(zip(fresh, assigned, strict=True))
    names = _fresh_ids(problem, len(fresh))
    ids: list[UnitId] = []
    groups: list[GpuGroup] = []
    for index, draft in enumerate(drafts):
        if draft.continues is not None:
            ids.append(draft.continues)
            groups.append(kept[draft.continues].group)
        else:
            ids.append(names.pop(0))
            groups.append(by_index[index])
    return ids, groups


def _fresh_ids(problem: PlacementProblem, count: int) -> list[UnitId]:
    used = {unit.id for unit in problem.current.units}
    found: list[UnitId] = []
    index = 0
    while len(found) < count:
        name = UnitId(f"{problem.unit_prefix}{index}")
        if name not in used:
            found.append(name)
        index += 1
    return found


def _replica_numbers(
    problem: PlacementProblem, drafts: Sequence[Draft], ids: Sequence[UnitId]
) -> dict[tuple[UnitId, ModelName], int]:
    """Members that stay keep their number; others get the smallest unused one."""
    numbers: dict[tuple[UnitId, ModelName], int] = {}
    used: dict[ModelName, set[int]] = {}
    wanted = {(ids[i], ask.llm.name) for i, draft in enumerate(drafts) for ask in draft.asks}
    for unit, member in problem.current.members():
        if (unit.id, member.model) in wanted:
            numbers[unit.id, member.model] = member.replica
            used.setdefault(member.model, set()).add(member.replica)
    for index, draft in enumerate(drafts):
        for ask in draft.asks:
            key = (ids[index], ask.llm.name)
            if key in numbers:
                continue
            taken = used.setdefault(ask.llm.name, set())
            number = next(n for n in range(len(taken) + 1) if n not in taken)
            taken.add(number)
            numbers[key] = number
    return numbers


def _unit(
    unit_id: UnitId,
    group: GpuGroup,
    draft: Draft,
    numbers: dict[tuple[UnitId, ModelName], int],
    kept: Mapping[ModelName, Bytes],
    estimator: UnitEstimator,
) -> Unit:
    outcome = estimator.outcome(draft.kind, draft.asks)
    quotas = _quotas(draft, [member.kv for member in outcome.members], kept)
    members = [
        Member(
            model=ask.llm.name,
            replica=numbers[unit_id, ask.llm.name],
            tensor=group.size,
            share=member.share,
            kv=quota,
            rate=ask.rate,
            concurrency=_concurrency(ask, member),
        )
        for ask, member, quota in zip(draft.asks, outcome.members, quotas, strict=True)
    ]
    ordered = tuple(sorted(members, key=lambda member: (member.model, member.replica)))
    return Unit(id=unit_id, group=group, members=ordered)


def _concurrency(ask: Ask, found: MemberOutcome) -> float:
    """Two digits: what changes by less is no news for who carries a plan out."""
    served = min(ask.rate, found.served)
    decoding = served * ask.llm.demand.output_tokens * (found.tpot_mean_s or 0.0)
    return float(f"{decoding:.2g}")


def _quotas(draft: Draft, parts: Sequence[Bytes], had: Mapping[ModelName, Bytes]) -> list[KvQuota]:
    """Floor and half of each part beyond it are guaranteed; whoever needs it borrows the rest.

    Who asks for a guarantee gets that one, and nobody gets more than its limit: what is guaranteed
    no other can ever hold, so it also bounds the others' longest request. A floor raised beyond
    what the unit has stays what it `had`.
    """
    size = draft.kind.gpus
    weights = sum(weight_floor(ask.llm, tensor=size) for ask in draft.asks) * size
    room = min(sum(parts), size * draft.kind.memory - weights)
    floors = [kv_floor(ask.llm, tensor=size) * size for ask in draft.asks]
    if sum(floors) > room:
        floors = [min(floor, had.get(ask.llm.name, floor))
                  for floor, ask in zip(floors, draft.asks, strict=True)]  # fmt: skip
        parts = [Bytes(floor) for floor in floors]
    kept = [
        floor if ask.llm.sharing.kv_request else _half_more(ask.llm, floor, part, size * UNIT_BYTES)
        for ask, floor, part in zip(draft.asks, floors, parts, strict=True)
    ]
    spare = _whole(max(0, room - sum(kept)), size * UNIT_BYTES)
    return [_quota(ask.llm, held, spare) for ask, held in zip(draft.asks, kept, strict=True)]


def _half_more(llm: Llm, floor: int, part: Bytes, whole: int) -> int:
    most = (floor + part) / 2
    if llm.sharing.kv_limit is not None:
        most = min(most, llm.sharing.kv_limit)
    return max(floor, _whole(most, whole))


def _whole(size: float, part: int) -> int:
    return int(size // part) * part


def _quota(llm: Llm, guaranteed: int, spare: int) -> KvQuota:
    most = guaranteed + spare
    asked = llm.sharing.kv_limit
    limit = most if asked is None else max(guaranteed, min(most, asked))
    return KvQuota(guaranteed=Bytes(guaranteed), limit=Bytes(limit))
