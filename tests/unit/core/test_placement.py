import pytest

from mux_core.errors import InvariantError, SpecError
from mux_core.placement import GpuGroup, GpuNode, KvQuota, Member, Placement, Share, Unit
from mux_core.units import Bytes, ModelName, NodeName, Percent, UnitId


def group(*gpus: int, node: str = "n0") -> GpuGroup:
    return GpuGroup(node=NodeName(node), gpus=gpus)


def member(model: str, replica: int = 0) -> Member:
    quota = KvQuota(guaranteed=Bytes(0), limit=Bytes(10))
    return Member(model=ModelName(model), replica=replica, tensor=1, share=Share(), kv=quota)


def unit(name: str, *members: Member, gpus: tuple[int, ...] = (0,)) -> Unit:
    return Unit(id=UnitId(name), group=group(*gpus), members=members)


def test_a_unit_brings_its_members_into_order() -> None:
    made = unit("u0").with_members((member("b"), member("a")))
    assert [m.model for m in made.members] == ["a", "b"]


def test_two_replicas_of_one_model_never_share_a_unit() -> None:
    with pytest.raises(InvariantError, match="two replicas"):
        unit("u0", member("a", 0), member("a", 1))


def test_members_out_of_order_are_a_bug() -> None:
    with pytest.raises(InvariantError, match="order"):
        unit("u0", member("b"), member("a"))


def test_a_placement_counts_gpus_with_members_once() -> None:
    placement = Placement(
        units=(
            unit("u0", member("a"), gpus=(0, 1)),
            unit("u1", gpus=(2,)),
            unit("u2", member("b"), gpus=(3,)),
        )
    )
    assert placement.gpus_used == 3
    assert [m.model for _, m in placement.members()] == ["a", "b"]


def test_adding_and_removing_a_unit_return_new_placements() -> None:
    empty = Placement()
    one = empty.with_unit(unit("u0", member("a")))
    assert (empty.units, one.unit(UnitId("u0")) is not None) == ((), True)
    assert one.without_unit(UnitId("u0")) == empty
    replaced = one.with_unit(unit("u0", member("b")))
    assert [m.model for _, m in replaced.members()] == ["b"]


@pytest.mark.parametrize("gpus", [(), (1, 0), (0, 0)])
def test_gpu_indices_ascend_without_repeats(gpus: tuple[int, ...]) -> None:
    with pytest.raises(InvariantError):
        group(*gpus)


@pytest.mark.parametrize("percent", [0, 101, -5])
def test_a_share_is_between_1_and_100_percent(percent: int) -> None:
    with pytest.raises(SpecError, match="1 to 100"):
        Share(prefill=Percent(percent))


def test_a_guarantee_above_the_limit_is_refused() -> None:
    with pytest.raises(SpecError, match="exceeds limit"):
        KvQuota(guaranteed=Bytes(2), limit=Bytes(1))


def test_a_node_has_at_least_one_gpu() -> None:
    with pytest.raises(SpecError, match="at least 1"):
        GpuNode(name=NodeName("n"), gpus=0, memory=Bytes(1))
