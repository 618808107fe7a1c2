"""An LLMDeployment that cannot be read: it says so, and what runs of it runs on untouched."""

from dataclasses import replace

from mux_core.llm import SharingPolicy
from mux_core.reasons import ConditionType as C
from mux_operator import observing
from world_builders import World, a_world, an_llm, kinds, settled, slots

WHY = "spec: cannot be read; apply the manifest again"


def break_manifest(world: World, name: str) -> None:
    item = world.llms[name]
    world.llms[name] = replace(item, spec=None, spec_error=WHY, path="", pool="pool",
                               generation=item.generation + 1)  # fmt: skip


def test_a_running_model_that_cannot_be_read_runs_on_as_it_is() -> None:
    world = settled(an_llm("a", sharing=SharingPolicy(tenant_group="blue"), served_name="chat"))
    before = dict(world.records)
    break_manifest(world, "a")

    world.settle()

    assert world.records == before
    assert world.serving == ["chat"]
    assert world.said("a", C.MODEL_RESOLVED) == ("False", "InvalidSpec")
    assert world.condition("a", C.MODEL_RESOLVED).message == WHY
    assert world.said("a", C.RUNTIME_READY) == ("True", "Serving")


def test_nobody_joins_a_unit_whose_tenant_group_is_not_known() -> None:
    world = settled(an_llm("a", sharing=SharingPolicy(tenant_group="blue")), nodes=(slots(2),))
    break_manifest(world, "a")
    world.add(an_llm("b"))
    world.settle()
    assert sorted(world.placed.values()) == [["a"], ["b"]]


def test_one_that_never_ran_is_told_so_and_nothing_is_started_for_it() -> None:
    world = a_world(an_llm("a"), an_llm("b"))
    break_manifest(world, "a")
    taken = world.settle()
    assert world.said("a", C.READY) == ("False", "InvalidSpec")
    assert kinds(taken).count("InspectModel") == 1
    assert world.serving == ["b"]


def test_it_is_read_again_once_it_is_mended() -> None:
    world = settled(an_llm("a"))
    good, records = world.llms["a"], dict(world.records)
    break_manifest(world, "a")
    world.settle()
    world.llms["a"] = replace(good, status=world.llms["a"].status, generation=3)
    world.settle()
    assert world.said("a", C.READY) == ("True", "Ready")
    assert world.records == records


def test_an_object_without_a_readable_spec_is_still_an_object_of_its_pool() -> None:
    metadata = {"name": "a", "uid": "u", "generation": 1,
                "creationTimestamp": "2026-01-01T00:00:00Z"}  # fmt: skip
    for spec in (None, "text", {"poolRef": "x", "model": {"uri": "pvc://a/b"}}, {"model": 3}):
        item = observing.llm_object({"metadata": metadata, "spec": spec})
        assert item.spec is None
        assert "apply the manifest again" in item.spec_error
        assert item.pool == "default"
