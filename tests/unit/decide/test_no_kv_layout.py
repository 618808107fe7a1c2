"""A geometry that no KV layout holds costs its own model the place and nobody else anything."""

from mux_core.llm import Dtype
from mux_core.reasons import ConditionType as C
from world_builders import a_world, an_llm, settled, shape

WIDE = shape(head_dim=8192)


def test_a_model_without_a_kv_layout_does_not_fit_and_the_others_serve() -> None:
    world = a_world(an_llm("a"), an_llm("wide"), shapes={"wide": WIDE})
    world.settle()
    assert world.serving == ["a"]
    assert world.said("a", C.READY) == ("True", "Ready")
    assert world.said("wide", C.PLACED) == ("False", "DoesNotFit")
    message = world.condition("wide", C.PLACED).message
    assert "LLM wide" in message
    assert "head_dim 8192" in message


def test_a_running_model_edited_beyond_any_layout_leaves_the_plan_of_the_others_alone() -> None:
    world = settled(an_llm("a"), an_llm("wide", dtype=Dtype.FLOAT16), shapes={"wide": WIDE})
    world.edit("wide", dtype=Dtype.FLOAT32)
    world.add(an_llm("late"))
    world.settle()
    assert world.said("late", C.READY) == ("True", "Ready")
    assert world.said("a", C.READY) == ("True", "Ready")
