"""Objects for the API server, and read back from it."""

from dataclasses import replace

import pytest

from decide_world import GEOMETRY, KEY, World, llm
from mux_core.actions import InspectModel, RecordPlan, Why
from mux_core.decide import decide
from mux_core.reasons import ConditionType, Reason, condition
from mux_core.snapshot import CarrierState, UnitRecord
from mux_core.specs import PodTemplate, PoolSpec
from mux_core.status import Figures, LlmStatus, MeasuredDemand, Resolved, Truth
from mux_core.units import Bytes, ModelName
from mux_core.unitspec import Device
from mux_operator import manifests, names, observing
from mux_operator.schema import parse_llm, parse_pool
from mux_operator.status_documents import llm_status, plan_manifest, read_llm_status
from operator_builders import llm_manifest, pool_manifest

POOL = PoolSpec(device=Device.CPU, pod=PodTemplate(labels={"team": "a"}, cpu="2"))
NOW = 1767225600.0
"""2026-01-01T00:00:00Z."""


@pytest.fixture
def record() -> UnitRecord:
    """The unit of a world of two models."""
    world = World()
    world.add(llm("a"), llm("b"))
    world.settle()
    return world.seen.units[0]


def pod(record: UnitRecord, pool: PoolSpec = POOL) -> manifests.Manifest:
    return manifests.unit_pod(record, pool, claims=["models", "more.models"], namespace="ns",
                              pool_uid="uid-pool", image="muxserve:1")  # fmt: skip


def test_a_record_survives_its_config_map(record: UnitRecord) -> None:
    written = manifests.unit_config_map(record, namespace="ns", pool_uid="uid-pool")
    assert observing.unit_record(written) == record
    assert observing.owned_by(written, "uid-pool")
    assert not observing.owned_by(written, "another")


def test_a_config_map_that_is_damaged_is_no_record(record: UnitRecord) -> None:
    written = manifests.unit_config_map(record, namespace="ns", pool_uid="uid-pool")
    written["data"][names.UNIT_KEY] = "{}"
    assert observing.unit_record(written) is None


def test_a_unit_pod_keeps_the_restricted_standard(record: UnitRecord) -> None:
    spec = pod(record)["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(not mount["mountPath"].startswith("/models") or mount["readOnly"]
               for mount in container["volumeMounts"])  # fmt: skip


def test_a_cpu_unit_asks_for_no_gpu_and_a_cuda_unit_for_all_of_its_group(
    record: UnitRecord,
) -> None:
    (container,) = pod(record)["spec"]["containers"]
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    cuda = replace(record, spec=replace(record.spec, device=Device.CUDA))
    (container,) = pod(cuda, replace(POOL, device=Device.CUDA))["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_a_cuda_unit_gets_the_mps_daemon_and_room_for_the_weights(record: UnitRecord) -> None:
    cuda = replace(record, spec=replace(record.spec, device=Device.CUDA, memory_bytes=3 << 30))
    spec = pod(cuda, replace(POOL, device=Device.CUDA))["spec"]
    wanted = {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}
    assert wanted in spec["containers"][0]["env"]
    assert wanted not in pod(record)["spec"]["containers"][0]["env"]
    (shm,) = (v for v in spec["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "3072Mi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in spec["containers"][0]["volumeMounts"]


def test_a_unit_pod_is_seen_as_the_carrier_it_was_made_for(record: UnitRecord) -> None:
    made = pod(record)
    made["status"] = {"phase": "Running", "podIP": "10.1.2.3"}
    made["metadata"]["labels"] |= manifests.unit_labels(["a"], ["b"])
    seen = observing.carrier(made)
    assert (seen.unit, seen.incarnation, seen.state) == (record.unit, 1, CarrierState.RUNNING)
    assert seen.claims == {"models", "more.models"}
    assert (seen.serving, seen.draining) == ({"a"}, {"b"})
    assert seen.address is not None
    assert seen.address.host == "10.1.2.3"
    made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert observing.carrier(made).state is CarrierState.STOPPING


def test_a_pod_that_waits_says_for_what(record: UnitRecord) -> None:
    made = pod(record)
    why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
           "message": "0/1 nodes are available"}  # fmt: skip
    made["status"] = {"phase": "Pending", "conditions": [why]}
    assert observing.carrier(made).message == "Unschedulable: 0/1 nodes are available"


def test_an_inspect_pod_reports_by_its_termination_message() -> None:
    item = llm("a")
    assert item.spec is not None
    action = InspectModel(model=item.name, source=item.spec.source, path=item.path, uid=item.uid,
                          why=Why.SOURCE_UNKNOWN)  # fmt: skip
    made = manifests.inspect_pod(action, PodTemplate(), namespace="ns", image="muxserve:1")
    assert made["metadata"]["name"] == "a-fetch"
    assert observing.inspection(made).result is None
    message = '{"ok":false,"reason":"NotFound","message":"no config.json"}'
    ended = {"terminated": {"exitCode": 2, "message": message}}
    made["status"] = {"containerStatuses": [{"state": ended}]}
    result = observing.inspection(made).result
    assert result == Resolved(source=item.spec.source.key, error_reason=Reason.NOT_FOUND,
                              message="no config.json")  # fmt: skip
    ended["terminated"]["message"] = "Killed"
    result = observing.inspection(made).result
    assert result is not None
    assert result.error_reason == Reason.INSPECTION_FAILED


def test_a_status_survives_the_api() -> None:
    status = LlmStatus(
        observed_generation=3, served_name="a", port=10001,
        conditions=(replace(condition(ConditionType.PLACED, Truth.TRUE, Reason.SHARED),
                            since=1000.0, observed_generation=3),),
        demand=MeasuredDemand(rate=1.25, source="RuntimeCounters", as_of=2000.0),
        resolved=Resolved(source="pvc://m/a", geometry=GEOMETRY, weight_bytes=Bytes(5)),
        predicted=Figures(rate=1.5, served=1.25, ttft_mean_s=0.25, tpot_mean_s=0.05,
                          tpot_p99_s=0.075, attainment=0.9875, costs="measured"),
        observed=Figures(as_of=2000.0, served=1.25, ttft_p99_s=0.5, kv_bytes=4096),
    )  # fmt: skip
    document = llm_status("a", status)
    assert document["observed"] == {"asOf": "1970-01-01T00:33:20Z", "served": "1.25",
                                    "kv": "4096", "ttft": {"p99": "500.0ms"}}  # fmt: skip
    assert "attainment" not in document["observed"], "what is not known is not said"
    assert read_llm_status(llm_status("a", status)) == status


def test_what_another_scheme_needs_is_said() -> None:
    stored = llm_manifest(model={"uri": "hf://org/model"})
    stored["metadata"] |= {"uid": "u", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    assert "pvc://claim/path" in observing.llm_object(stored).source_error
    stored = llm_manifest()
    stored["metadata"] |= {"uid": "u", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    assert observing.llm_object(stored).path == "/models/models/chat"
    assert parse_llm(stored).source.claim == "models"


def test_the_inventory_is_static_or_read_from_ready_nodes() -> None:
    static = parse_pool(pool_manifest())
    assert [(n.name, n.gpus, n.memory) for n in observing.inventory(static, (), now=NOW)] == [
        ("node-0", 1, observing.CPU_SLOT)
    ]
    node = {
        "metadata": {"name": "gpu-1", "labels": {"nvidia.com/gpu.memory": "81920", "zone": "a"}},
        "status": {"allocatable": {"nvidia.com/gpu": "8"},
                   "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip
    cuda = PoolSpec(pod=PodTemplate(node_selector={"zone": "a"}))
    (found,) = observing.inventory(cuda, [node], now=NOW)
    assert (found.name, found.gpus) == ("gpu-1", 8)
    elsewhere = PoolSpec(pod=PodTemplate(node_selector={"zone": "b"}))
    assert observing.inventory(elsewhere, [node], now=NOW) == ()
    assert observing.lost_nodes([node]) == frozenset()


def test_a_node_that_is_not_ready_counts_for_a_while_yet() -> None:
    ready = {"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    node = {
        "metadata": {"name": "gpu-1", "labels": {"nvidia.com/gpu.memory": "81920"}},
        "status": {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": [ready]},
    }  # fmt: skip
    cuda = PoolSpec()
    assert observing.lost_nodes([node]) == {"gpu-1"}
    assert len(observing.inventory(cuda, [node], now=NOW + 59)) == 1
    assert observing.inventory(cuda, [node], now=NOW + 61) == ()
    del ready["lastTransitionTime"]
    assert observing.inventory(cuda, [node], now=NOW) == (), "nothing says how long"
    ready["status"] = "True"
    assert len(observing.inventory(cuda, [node], now=NOW + 61)) == 1


def test_a_plan_shows_its_steps_and_what_it_refused() -> None:
    world = World()
    world.add(llm("a"))
    world.look()
    snapshot, asked, choice = world.plan()
    action = next(x for x in decide(snapshot, asked, choice) if isinstance(x, RecordPlan))
    made = plan_manifest(action, namespace="ns", pool=KEY.name, pool_uid="u")
    assert [step["kind"] for step in made["spec"]["steps"]] == ["CreateUnit", "StartEngine"]
    seen = observing.plan_record(made)
    assert seen is not None
    assert (seen.revision, seen.inputs_hash) == (1, asked.inputs_hash)


def test_a_service_selects_the_pods_that_serve_its_model() -> None:
    made = manifests.model_service("a", 10001, namespace="ns", uid="uid-a")
    assert made["spec"]["selector"] == {"llm.muxserve.io/a": "serving"}
    assert observing.service(made) == (ModelName("a"), 10001)
