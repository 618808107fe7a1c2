"""Specs are refused with reason and figures; status and metrics say what the scheduler knows."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mux_core.tally import BUCKETS
from mux_core.unitspec import Device, to_json
from mux_runtime.brain.control import Bell, UnitControl
from mux_runtime.brain.members import UnitMembers, check_floors, check_member
from mux_runtime.brain.report import unit_status
from mux_runtime.control import control_pb2 as pb
from mux_runtime.front.metrics import model_exposition
from mux_runtime.metrics import UnitCollector
from mux_runtime.nvml import NvmlReason, NvmlUnavailable, open_nvml
from mux_runtime.openai import buckets
from mux_runtime.openai.series import Judged
from scheduler_builders import ToyScheduler, ask, collect, geometry, spec, unit
from unit_tree_builders import member, unit_spec


def brain(box: ToyScheduler, folder: Path, *models: str) -> UnitMembers:
    wanted = unit_spec([spec(m) for m in models], memory_bytes=512 * 256, unit_bytes=256)
    members = UnitMembers(box.scheduler, wanted, folder / "spec.json")
    members.reconcile()
    return members


def control(members: UnitMembers, bell: Bell | None = None) -> UnitControl:
    def status() -> pb.UnitStatus:
        return unit_status(members, "start", answering=None, unanswerable={})

    return UnitControl(members, status, bell or Bell())


async def apply(members: UnitMembers, text: str) -> pb.ApplyReply:
    return await control(members).Apply(pb.ApplyRequest(spec_json=text), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"engine": "Vllm"}, "engine 'Vllm'; this runtime has Torch", id="engine"),
        pytest.param({"tensor": 2}, "tensor 2; this runtime runs", id="tensor"),
        pytest.param({"decode_percent": 0}, "decode_percent 0; 1 to 100", id="no share"),
        pytest.param({"kv_guaranteed_bytes": 9, "kv_limit_bytes": 8}, "is below the guaranteed",
                     id="limit below floor"),
    ],
)  # fmt: skip
def test_members_this_runtime_cannot_run(changes: dict[str, Any], message: str) -> None:
    refusal = check_member(unit_spec([]), member("a", Path("/m"), **changes))
    assert refusal is not None
    assert (refusal.reason, message in refusal.message) == ("UnitRefusedSpec", True), refusal


def test_floors_beyond_the_memory_are_refused_with_the_figures() -> None:
    wanted = unit_spec([member("a", Path("/m"), kv_guaranteed_bytes=65 << 20)])
    refusal = check_floors(wanted)
    assert refusal is not None
    assert refusal.reason == "DoesNotFit"
    assert "need 65.0 MiB, the unit has 64.0 MiB" in refusal.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "other"}, "unit is u and other is wanted"),
        ({"incarnation": 2}, "incarnation is 1 and 2 is wanted"),
        ({"device": Device.CUDA}, "device is CPU and CUDA is wanted"),
        ({"unit_bytes": 512}, "unit_bytes is 256 and 512 is wanted"),
    ],
)
async def test_what_a_running_unit_keeps_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    box = unit()
    members = brain(box, tmp_path, "a")
    reply = await apply(members, to_json(replace(members.spec, generation=2, **changes)))
    assert (reply.accepted, reply.reason, reply.generation) == (False, "UnitRefusedSpec", 1)
    assert message in reply.message
    await box.scheduler.close()


async def test_text_that_is_no_spec_is_refused(tmp_path: Path) -> None:
    box = unit()
    members = brain(box, tmp_path, "a")
    for text in ("", "[]", '{"unit": "u"}', "nonsense"):
        reply = await apply(members, text)
        assert (reply.accepted, reply.reason) == (False, "UnitRefusedSpec")
        assert reply.message
    await box.scheduler.close()


async def test_apply_is_idempotent_by_generation(tmp_path: Path) -> None:
    box = unit()
    members = brain(box, tmp_path, "a")
    await box.serving("a")
    hosts = list(box.starter.started)
    fresh = to_json(replace(members.spec, generation=5))
    for _ in range(2):
        reply = await apply(members, fresh)
        assert (reply.accepted, reply.generation) == (True, 5)
    reply = await apply(members, to_json(replace(members.spec, generation=4, members=())))
    assert (reply.accepted, reply.generation) == (True, 5)
    assert (box.starter.started, members.applied_generation) == (hosts, 5)
    assert "generation" in members.kept.read_text()
    await box.scheduler.close()


async def test_another_path_means_new_hosts_and_the_same_model_serves_again(
    tmp_path: Path,
) -> None:
    box = unit()
    members = brain(box, tmp_path, "a")
    await box.serving("a")
    moved = replace(members.spec, generation=2, members=(spec("a", path="/elsewhere"),))
    assert (await apply(members, to_json(moved))).accepted
    async with asyncio.timeout(5):
        while members.applied_generation != 2:
            await asyncio.sleep(0.001)
            members.note_progress()
    assert (len(box.starter.started), box.starter.forgotten) == (4, ["a"])
    assert await collect(box, ask("r", count=2))
    await box.scheduler.close()


async def test_watchers_hear_the_bell(tmp_path: Path) -> None:
    box = unit()
    members, bell = brain(box, tmp_path, "a"), Bell()
    watch = control(members, bell).Watch(pb.WatchRequest(interval_s=60), None)  # type: ignore[arg-type]
    assert (await anext(watch)).unit == "u"
    later = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    bell.ring()
    assert (await asyncio.wait_for(later, 5)).start_id == "start"
    await box.scheduler.close()


async def test_a_member_whose_tokenizer_is_missing_is_reported_failed(tmp_path: Path) -> None:
    box = unit()
    members = brain(box, tmp_path, "a")
    await box.serving("a")
    status = unit_status(members, "s", answering=set(), unanswerable={"a": "no tokenizer.json"})
    (one,) = status.members
    assert (one.state, one.reason, one.permanent) == ("Failed", "TokenizerMissing", True)
    waiting = unit_status(members, "s", answering=set(), unanswerable={})
    assert waiting.members[0].state == "Starting"
    await box.scheduler.close()


async def test_latencies_and_slo_results_travel_with_the_counters(tmp_path: Path) -> None:
    box = unit({"a": geometry(), "b": geometry()})
    members = brain(box, tmp_path, "a", "b")
    await box.serving("a", "b")
    await collect(box, ask("r", count=3))
    status = unit_status(members, "s", answering=None, unanswerable={},
                         judged={"a": Judged(judged=5, met=4)})  # fmt: skip
    a, b = (found.counters for found in status.members)
    assert (a.slo_judged, a.slo_met, b.slo_judged) == (5, 4, 0)
    assert (sum(a.ttft_counts), sum(a.tpot_counts), len(a.ttft_counts)) == (1, 1, BUCKETS)
    assert sum(b.ttft_counts) == 0
    await box.scheduler.close()


async def test_series_carry_the_labels_of_their_table(tmp_path: Path) -> None:
    box = unit({"a": geometry(), "b": geometry()})
    members = brain(box, tmp_path, "a", "b")
    await box.serving("a", "b")
    await collect(box, ask("r"))
    registry = CollectorRegistry()
    registry.register(UnitCollector(members))
    families = {f.name: f for f in text_string_to_metric_families(
        generate_latest(registry).decode())}  # fmt: skip
    unit_labels = {"mux_namespace", "pool", "unit"}
    model_labels = unit_labels | {"model", "model_name"}
    expected = {
        "muxserve_model_state": model_labels | {"state"},
        "muxserve_model_compute_percent": model_labels | {"phase", "kind"},
        "muxserve_model_kv_bytes": model_labels | {"kind"},
        "muxserve_model_weights_bytes": model_labels,
        "muxserve_model_engine_restarts": model_labels | {"phase", "reason"},
        "muxserve_unit_grants": model_labels | {"phase"},
        "muxserve_unit_spec_generation": unit_labels,
        "muxserve_unit_spec_applied_generation": unit_labels,
        "vllm:num_requests_running": model_labels,
        "vllm:num_requests_waiting": model_labels,
        "vllm:kv_cache_usage_perc": model_labels,
        "vllm:prefix_cache_queries": model_labels,
        "vllm:prefix_cache_hits": model_labels,
        "vllm:cache_config_info": model_labels | {"block_size", "num_gpu_blocks"},
    }
    for name, labels in expected.items():
        assert {frozenset(s.labels) for s in families[name].samples} == {frozenset(labels)}, name
    grants = {(s.labels["model"], s.labels["phase"]): s.value
              for s in families["muxserve_unit_grants"].samples}  # fmt: skip
    assert grants == {("a", "prefill"): 1, ("a", "decode"): 7, ("b", "prefill"): 0,
                      ("b", "decode"): 0}  # fmt: skip
    await box.scheduler.close()


async def test_request_times_and_the_cache_s_size_stand_on_the_model_s_own_port(
    tmp_path: Path,
) -> None:
    box = unit({"a": geometry(), "b": geometry(3, 2)})
    members = brain(box, tmp_path, "a", "b")
    await box.serving("a", "b")
    await collect(box, ask("r"))
    registry = CollectorRegistry()
    registry.register(UnitCollector(members))
    text = model_exposition(registry, "a").decode()
    families = {f.name: f for f in text_string_to_metric_families(text)}
    for stage in ("queue", "prefill", "decode"):
        name = f"vllm:request_{stage}_time_seconds"
        samples = families[name].samples
        assert families[name].type == "histogram"
        edges = [s.labels["le"] for s in samples if s.name == f"{name}_bucket"]
        assert edges == [*(str(edge) for edge in buckets.REQUEST), "+Inf"]
        assert [s.value for s in samples if s.name == f"{name}_count"] == [1]
    (info,) = families["vllm:cache_config_info"].samples
    a = box.scheduler.members["a"]
    assert info.value == 1
    assert info.labels == {
        "model_name": "a-served", "block_size": str(geometry().block_tokens),
        "num_gpu_blocks": str(a.quota // geometry().row_units),
    }  # fmt: skip
    assert int(info.labels["num_gpu_blocks"]) > 0
    await box.scheduler.close()


def test_nvml_says_why_it_cannot_be_asked() -> None:
    try:
        with open_nvml() as nvml:
            assert all(device.uuid for device in nvml.devices())
    except NvmlUnavailable as absent:
        reason = absent.reason
    else:
        return
    assert reason in set(NvmlReason)
