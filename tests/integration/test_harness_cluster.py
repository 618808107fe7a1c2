"""The test cluster as a whole: Services, faults, audit, and nothing left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from harness.api import Object
from harness.audit import AuditLog
from harness.cluster import Cluster
from harness.commands import CommandError, Helm, Kubectl
from harness.fault_proxy import Fault, FaultProxy, Kind
from harness.folders import data_folder
from harness.waiting import eventually

pytestmark = pytest.mark.cluster

TESTS = Path(__file__).resolve().parent.parent
SERVE = """
import http.server, os
at = (os.environ["POD_IP"], 8080)
http.server.ThreadingHTTPServer(at, http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def server(replicas: int) -> Object:
    probe = {"tcpSocket": {"port": 8080}}
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    main: Object = {"name": "main", "image": "any", "command": ["python", "-c", SERVE]}
    main |= {"env": [address], "readinessProbe": probe}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [main], "terminationGracePeriodSeconds": 0},
            },
        },
    }


SERVICE: Object = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
}


def test_a_service_address_reaches_its_pods(kubectl: Kubectl) -> None:
    kubectl.apply(server(2), SERVICE)
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    address = kubectl.get("service", "web")["spec"]["clusterIP"]

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    eventually(answers, "the Service answers")


def test_a_pod_finds_services_by_name_and_the_api_server_by_its_account(
    kubectl: Kubectl, namespace: str
) -> None:
    script = """
import os, pathlib, socket, ssl, time, urllib.request
account = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
print(socket.gethostbyname("web"), socket.gethostbyname("web." + os.environ["NS"]), flush=True)
host = os.environ["KUBERNETES_SERVICE_HOST"] + ":" + os.environ["KUBERNETES_SERVICE_PORT"]
token = {"Authorization": "Bearer " + (account / "token").read_text()}
request = urllib.request.Request("https://" + host + "/version", headers=token)
trust = ssl.create_default_context(cafile=account / "ca.crt")
print(urllib.request.urlopen(request, context=trust).status, flush=True)
time.sleep(999)
"""
    space = {"name": "NS", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}
    main = {"name": "main", "image": "any", "command": ["python", "-c", script], "env": [space]}
    client = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client"},
        "spec": {"containers": [main], "terminationGracePeriodSeconds": 0},
    }
    kubectl.apply(SERVICE, client)
    address = kubectl.get("service", "web")["spec"]["clusterIP"]

    def printed() -> bool:
        return kubectl("logs", "client").split() == [address, address, "200"]

    eventually(printed, "the pod printed both addresses and 200")


def test_the_api_server_survives_kill_and_restart(cluster: Cluster, kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "kept", "--from-literal=a=1")
    plane = cluster.control_plane
    plane.api_server.kill()
    with pytest.raises(CommandError):
        kubectl("get", "configmap", "kept", "--request-timeout=2s")
    plane.resume()
    assert kubectl.get("configmap", "kept")["data"] == {"a": "1"}
    kubectl.apply(server(1))
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")


def test_the_audit_log_tells_who_called_what(
    cluster: Cluster, namespace: str, audit: AuditLog
) -> None:
    visitor = cluster.kubectl(namespace, cluster.control_plane.kubeconfig("visitor"))
    with pytest.raises(CommandError, match="forbidden"):
        visitor("get", "secrets")

    def denied() -> bool:
        return [call.resource for call in audit.denied(user="visitor")] == ["secrets"]

    eventually(denied, "the refusal is in the log")
    assert audit.count(user="visitor")["list", "secrets", 403] == 1


def test_a_service_account_token_works(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "serviceaccount", "reader")
    path = cluster.account_kubeconfig(namespace, "reader")
    whoami = cluster.kubectl(namespace, path)("auth", "whoami")
    assert f"system:serviceaccount:{namespace}:reader" in whoami


def test_injected_faults_reach_the_client_and_stop(
    cluster: Cluster, namespace: str, fault_proxy: FaultProxy
) -> None:
    admin = cluster.control_plane.kubeconfig("admin")
    path = cluster.write_kubeconfig("faulty", "admin-token", server=fault_proxy.server)
    assert admin != path
    kubectl = cluster.kubectl(namespace, path)
    fault_proxy.inject(Fault(match="POST .*/configmaps", status=409))
    with pytest.raises(CommandError, match="injected 409"):
        kubectl("create", "configmap", "one")
    kubectl("create", "configmap", "one")
    fault_proxy.inject(Fault(match="POST .*/configmaps", kind=Kind.LOSE))
    with pytest.raises(CommandError):
        kubectl("create", "configmap", "two")
    assert kubectl.exists("configmap", "two")
    assert [hit.kind for hit in fault_proxy.hits()] == ["answer", "lose"]


def test_throttling_and_cut_watches_are_injected_too(
    cluster: Cluster, namespace: str, fault_proxy: FaultProxy
) -> None:
    path = cluster.write_kubeconfig("faulty", "admin-token", server=fault_proxy.server)
    kubectl = cluster.kubectl(namespace, path)
    wait = {"Retry-After": "1"}
    fault_proxy.inject(Fault(match="GET .*/configmaps", status=429, headers=wait, count=2))
    began = time.monotonic()
    kubectl("get", "configmaps")  # client-go waits as told and asks again
    assert time.monotonic() - began > 1.9
    fault_proxy.inject(Fault(match=r"watch=", kind=Kind.CUT, delay=0.5))
    began = time.monotonic()
    kubectl("get", "configmaps", "--watch-only")
    assert 0.4 < time.monotonic() - began < 20
    assert [hit.kind for hit in fault_proxy.hits()] == ["answer", "answer", "cut"]


def test_a_frozen_node_keeps_its_processes_and_goes_on(cluster: Cluster, kubectl: Kubectl) -> None:
    kubectl.apply(server(1))
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    kubelet = cluster.process_node().kubelet
    kubelet.freeze()
    address = kubectl.get("pods", "-l", "app=web")["items"][0]["status"]["podIP"]
    kubectl("scale", "deployment/web", "--replicas=2")
    with urllib.request.urlopen(f"http://{address}:8080/", timeout=2) as answer:
        assert answer.status == 200
    kubelet.thaw()
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")


def test_a_lost_and_returned_node_runs_its_pods_again(cluster: Cluster, kubectl: Kubectl) -> None:
    kubectl.apply(server(1))
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    node = cluster.process_node()
    node.stop()
    node.start()

    def restarted() -> bool:
        pods = kubectl.get("pods", "-l", "app=web")["items"]
        status = pods[0]["status"]["containerStatuses"][0]
        return bool(status["restartCount"] == 1 and status["ready"])

    eventually(restarted, "the pod runs again")


def test_helm_installs_a_chart(helm: Helm, kubectl: Kubectl, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: tiny\nversion: 0.1.0\n")
    chart = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}'}\n"
    (tmp_path / "templates" / "config.yaml").write_text(chart)
    helm("install", "first", str(tmp_path))
    assert kubectl.exists("configmap", "first")


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGKILL],
    ids=["Ctrl-C", "kill", "kill -9"],
)
def test_a_persons_cluster_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    environment = dict(os.environ) | {"PYTHONPATH": str(TESTS), "TMPDIR": str(tmp_path)}
    # A namespace inside ours: its own network, so its ports do not clash with the session's.
    line = [sys.executable, "-m", "harness.namespace", sys.executable, "-m", "harness.cluster"]
    out = tmp_path / "out"
    with out.open("w") as output:
        started = subprocess.Popen(
            line, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        eventually(lambda: "Ctrl-C ends it" in out.read_text(), "the cluster is up", within=60)
    folder = next(tmp_path.glob("muxserve-cluster-*"))
    assert _mentioning(str(folder))
    if number is signal.SIGINT:
        os.killpg(started.pid, number)  # as the terminal does
    else:
        started.send_signal(number)
    started.wait(30)
    eventually(lambda: not _mentioning(str(folder)), "no process is left", within=10)
    assert folder.exists() == (number is signal.SIGKILL)
    # A dying owner gives its lock back a moment after its command line is gone.
    eventually(lambda: _is_swept(tmp_path, folder), "the next start removes it", within=5)


def _is_swept(root: Path, folder: Path) -> bool:
    """Whether the next cluster with this root removes the folder."""
    before = tempfile.tempdir
    tempfile.tempdir = str(root)
    try:
        with data_folder():
            return not folder.exists()
    finally:
        tempfile.tempdir = before


def _mentioning(words: str) -> list[int]:
    """Processes whose command line has the words, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if words in line:
            found.append(int(path.parent.name))
    return sorted(found)
