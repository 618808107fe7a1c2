"""The CRDs on a real API server, which must refuse what the local validator refuses."""

import json

import pytest

from harness.cluster import Cluster
from harness.commands import CommandError, Kubectl
from harness.waiting import eventually
from operator_builders import CHANGES, GOOD, WRONG, Manifest, llm_manifest, pool_manifest
from operator_cluster import install_crds

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def crds(cluster: Cluster) -> None:
    install_crds(cluster)


def change_refusal(kubectl: Kubectl, manifest: Manifest) -> str:
    """What kubectl says when the API server refuses a change to the manifest."""
    with pytest.raises(CommandError) as caught:
        kubectl.apply(manifest)
    return caught.value.stderr


def refusal(kubectl: Kubectl, manifest: Manifest) -> str:
    """What kubectl says when the API server refuses the manifest."""
    with pytest.raises(CommandError) as caught:
        kubectl("create", "--validate=strict", "-f", "-", stdin=json.dumps(manifest))
    return caught.value.stderr


def test_everything_wrong_is_refused_with_the_words_of_the_local_validator(
    kubectl: Kubectl,
) -> None:
    unlike = []
    for case, manifest, said in WRONG:
        answer = refusal(kubectl, manifest)
        if said not in answer:
            unlike.append(f"{case}: {said!r} is not in {answer!r}")
    assert not unlike, "\n".join(unlike)


def test_forbidden_changes_are_refused(kubectl: Kubectl) -> None:
    for _, before, after, said in CHANGES:
        kubectl.apply(before)
        assert said in change_refusal(kubectl, after)


def test_a_local_folder_is_refused_with_the_fix(kubectl: Kubectl) -> None:
    answer = refusal(kubectl, llm_manifest(model={"uri": "file:///models/a"}))
    assert "put local files on a claim: pvc://claim/path" in answer


@pytest.mark.parametrize("manifest", GOOD, ids=lambda m: m["metadata"]["name"])
def test_good_manifests_are_stored_and_come_back_unpruned(
    kubectl: Kubectl, manifest: Manifest
) -> None:
    kubectl.apply(manifest)
    stored = kubectl.get(manifest["kind"], manifest["metadata"]["name"])
    assert _covers(stored["spec"], manifest["spec"])


def test_the_columns_show_a_status(kubectl: Kubectl) -> None:
    kubectl.apply(llm_manifest("seen"), pool_manifest())
    now = "2026-01-01T00:00:00Z"
    status = {
        "servedName": "seen", "state": "Serving", "unit": "default-r1-u0",
        "demand": {"rate": "1.25", "source": "RuntimeCounters", "asOf": now},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Ready",
                        "lastTransitionTime": now, "observedGeneration": 1}],
    }  # fmt: skip
    kubectl("patch", "llm", "seen", "--subresource=status", "--type=merge", "-p",
            json.dumps({"status": status}))  # fmt: skip
    header, row = kubectl("get", "llm").splitlines()
    assert header.split() == ["NAME", "MODEL", "READY", "REASON", "STATE", "RATE", "UNIT", "AGE"]
    assert row.split()[:7] == ["seen", "seen", "True", "Ready", "Serving", "1.25", "default-r1-u0"]
    assert "URL" in kubectl("get", "llm", "-o", "wide").splitlines()[0]
    assert kubectl("get", "gpupool").splitlines()[0].split()[1:3] == ["MODE", "GPUS"]


def test_a_plan_is_frozen_and_its_decision_final(kubectl: Kubectl) -> None:
    spec = {"poolRef": {"name": "default"}, "inputsHash": "abc",
            "steps": [{"id": 1, "kind": "CreateUnit", "to": "u0"}]}  # fmt: skip
    plan = {"apiVersion": "muxserve.io/v1alpha1", "kind": "PlacementPlan",
            "metadata": {"name": "default-r1"}, "spec": spec}  # fmt: skip
    frozen = "only spec.approval may change, once; a new plan follows new inputs"
    kubectl.apply(plan)
    assert frozen in change_refusal(kubectl, {**plan, "spec": {**spec, "inputsHash": "other"}})
    assert frozen in change_refusal(kubectl, {**plan, "spec": {**spec, "steps": []}})
    approved = {**spec, "approval": {"decision": "Approve"}}
    kubectl.apply({**plan, "spec": approved})
    rejected = {**spec, "approval": {"decision": "Reject"}}
    assert frozen in change_refusal(kubectl, {**plan, "spec": rejected})


def test_scale_acts_on_replicas(kubectl: Kubectl) -> None:
    kubectl.apply(llm_manifest("scaled", replicas=1))
    kubectl("scale", "llm/scaled", "--replicas=2")
    eventually(lambda: kubectl.get("llm", "scaled")["spec"]["replicas"] == 2, "two replicas")


def _covers(stored: object, asked: object) -> bool:
    if isinstance(stored, dict) and isinstance(asked, dict):
        return all(key in stored and _covers(stored[key], asked[key]) for key in asked)
    return stored == asked
