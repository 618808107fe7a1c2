"""The chart as Helm renders it, and its values as Helm checks them."""

from typing import Any

import pytest
import yaml

from harness.commands import CommandError, Helm
from operator_cluster import CHART

pytestmark = pytest.mark.cluster


def rendered(helm: Helm, *values: str) -> list[dict[str, Any]]:
    flags = [flag for value in values for flag in ("--set", value)]
    text = helm("template", "mux", str(CHART), *flags)
    return [document for document in yaml.safe_load_all(text) if document]


def named(documents: list[dict[str, Any]], kind: str) -> list[str]:
    return sorted(d["metadata"]["name"] for d in documents if d["kind"] == kind)


def test_an_unknown_value_is_refused(helm: Helm) -> None:
    with pytest.raises(CommandError, match="gatway"):
        rendered(helm, "gatway.replicas=3")


def test_the_chart_passes_its_own_lint(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm("lint", str(CHART))


def test_without_node_reading_nothing_is_cluster_wide(helm: Helm) -> None:
    documents = rendered(helm, "operator.readNodes=false")
    assert named(documents, "ClusterRole") == named(documents, "ClusterRoleBinding") == []
    assert named(rendered(helm), "ClusterRole")


def test_a_role_for_every_watched_namespace(helm: Helm) -> None:
    documents = rendered(helm, "watchNamespaces={one,two}")
    roles = {d["metadata"].get("namespace") for d in documents if d["kind"] == "Role"}
    assert {"one", "two"} <= roles
    (operator,) = (d for d in documents if d["metadata"]["name"] == "mux-operator"
                   and d["kind"] == "Deployment")  # fmt: skip
    args = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--namespace=one", "--namespace=two"} <= set(args)


def test_no_role_holds_a_wildcard_or_a_secret(helm: Helm) -> None:
    for document in rendered(helm):
        for rule in document.get("rules", ()):
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
            assert "secrets" not in rule["resources"]


def test_without_a_gateway_there_is_none(helm: Helm) -> None:
    documents = rendered(helm, "gateway.enabled=false")
    assert named(documents, "Deployment") == ["mux-operator"]
    assert named(documents, "Service") == []


def test_profiles_are_mounted_where_the_operator_reads_them(helm: Helm) -> None:
    documents = rendered(helm, "planner.profiles.configMap=step-times")
    pod = next(d["spec"]["template"]["spec"] for d in documents if d["kind"] == "Deployment"
               and d["metadata"]["name"] == "mux-operator")  # fmt: skip
    (volume,) = (v for v in pod["volumes"] if v.get("configMap"))
    assert volume["configMap"] == {"name": "step-times"}
    (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == volume["name"])
    assert mount["readOnly"]
    assert f"--profiles={mount['mountPath']}" in pod["containers"][0]["args"]


def test_without_profiles_nothing_is_mounted(helm: Helm) -> None:
    text = helm("template", "mux", str(CHART))
    assert "profiles" not in text
