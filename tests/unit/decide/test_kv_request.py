"""A KV guarantee raised beyond what the group has: the model serves on and says so."""

from mux_core.llm import SharingPolicy
from mux_core.reasons import ConditionType as C
from mux_core.units import GIB, MIB, Bytes
from world_builders import an_llm, settled


def test_a_request_that_does_not_fit_any_more_is_said_while_the_model_serves_on() -> None:
    world = settled(an_llm("a"), an_llm("b"))
    assert world.condition("a", C.PLACED).message == ""

    world.edit("a", sharing=SharingPolicy(kv_request=Bytes(900 * GIB)))
    world.settle()

    assert world.said("a", C.READY) == ("True", "Ready")
    message = world.condition("a", C.PLACED).message
    assert "sharing.kvCache.request: 900.0 GiB does not fit" in message
    assert "lower it" in message
    assert world.condition("b", C.PLACED).message == ""

    world.edit("a", sharing=SharingPolicy(kv_request=Bytes(64 * MIB)))
    world.settle()
    assert world.condition("a", C.PLACED).message == ""


def test_what_is_asked_is_guaranteed_and_the_limit_holds() -> None:
    world = settled(an_llm("a"), an_llm("b"))
    world.edit("a", sharing=SharingPolicy(kv_request=Bytes(64 * MIB), kv_limit=Bytes(128 * MIB)))
    world.edit("b", sharing=SharingPolicy(kv_limit=Bytes(96 * MIB)))
    world.settle()

    (unit,) = world.records.values()
    a, b = unit.spec.member("a"), unit.spec.member("b")
    assert a is not None
    assert b is not None
    assert (a.kv_guaranteed_bytes, a.kv_limit_bytes) == (64 * MIB, 128 * MIB)
    assert b.kv_guaranteed_bytes <= b.kv_limit_bytes == 96 * MIB
