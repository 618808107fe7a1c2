"""What the process kubelet promises to pods: inputs, probes, restarts, a graceful end."""

import json
import sys
import time
from pathlib import Path

import pytest

from harness.api import Object
from harness.cluster import Cluster
from harness.commands import Kubectl
from harness.waiting import eventually

pytestmark = pytest.mark.cluster

SERVE = """
import http.server, os
at = (os.environ["POD_IP"], 8080)
http.server.ThreadingHTTPServer(at, http.server.SimpleHTTPRequestHandler).serve_forever()
"""
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def container(script: str, **fields: object) -> Object:
    return {"name": "main", "image": "any", "command": ["python", "-c", script], **fields}


def pod(name: str, *containers: Object, **spec: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": list(containers), "terminationGracePeriodSeconds": 0, **spec},
    }


def config(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def status_of(kubectl: Kubectl, name: str) -> Object:
    status = kubectl.get("pod", name)["status"]
    assert "containerStatuses" in status, f"pod {name} has not begun"
    found: Object = status["containerStatuses"][0]
    return found


def test_the_node_is_ready_and_offers_gpus(cluster: Cluster) -> None:
    node = cluster.kubectl().get("node", "node-0")
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"] == "True"


def test_a_pod_sees_its_volumes_at_their_real_paths(
    cluster: Cluster, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.bin").write_text("tensor")
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"pv-{namespace}"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadOnlyMany"],
            "hostPath": {"path": str(weights)},
            "storageClassName": "",
            "claimRef": {"namespace": namespace, "name": "weights"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "weights"},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": f"pv-{namespace}",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "stringData": {"token": "s3cret"},
    }
    script = """
import json, os, pathlib, time
read = lambda path: pathlib.Path(path).read_text()
seen = {"config": read("/etc/unit/spec.json"), "secret": read("/keys/token"),
        "weights": read("/models/deep/model.bin"), "label": read("/info/app"),
        "env": os.environ["COLOUR"], "pid": os.getpid(),
        "memory": os.environ["MEMORY"], "gpus": os.environ["NVIDIA_VISIBLE_DEVICES"],
        "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize}
pathlib.Path("/scratch/note").write_text("x")
try:
    pathlib.Path("/models/deep/new").write_text("x")
except OSError as error:
    seen["write"] = type(error).__name__ + str(error.errno)
print(json.dumps(seen), flush=True)
time.sleep(1000)
"""
    mounts = {
        "config": "/etc/unit",
        "secret": "/keys",
        "weights": "/models/deep",
        "scratch": "/scratch",
        "shm": "/dev/shm",
        "info": "/info",
    }
    reader = container(
        script,
        volumeMounts=[{"name": n, "mountPath": p} for n, p in mounts.items()],
        env=[
            {
                "name": "COLOUR",
                "valueFrom": {"configMapKeyRef": {"name": "unit", "key": "colour"}},
            },
            {
                "name": "MEMORY",
                "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}},
            },
        ],
        resources={"limits": {"memory": "1Gi", "nvidia.com/gpu": 2}},
    )
    label = {"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}
    volumes = [
        {"name": "config", "configMap": {"name": "unit"}},
        {"name": "secret", "secret": {"secretName": "keys"}},
        {"name": "weights", "persistentVolumeClaim": {"claimName": "weights", "readOnly": True}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        {"name": "info", "downwardAPI": {"items": [label]}},
    ]
    unit = config("unit", **{"spec.json": "{}", "colour": "green"})
    kubectl.apply(unit, secret, volume, claim, pod("reader", reader, volumes=volumes))
    kubectl.wait_ready("reader")
    seen = json.loads(eventually(lambda: kubectl("logs", "reader"), "the pod printed"))
    assert seen.pop("gpus").count("GPU-node-0-") == 2
    assert seen == {
        "config": "{}",
        "secret": "s3cret",
        "weights": "tensor",
        "label": "reader",
        "env": "green",
        "pid": 1,
        "memory": "1024",
        "shm": 16 * 2**20,
        "write": "OSError30",
    }
    assert not Path("/scratch").exists()
    assert seen["weights"] in cluster.process_node().log(namespace, "reader")
    kubectl("delete", "pv", f"pv-{namespace}", "--wait=false")


def test_a_changed_config_map_reaches_the_file_all_at_once(kubectl: Kubectl) -> None:
    script = """
import pathlib, time
seen = None
while True:
    now = pathlib.Path("/etc/unit/a").read_text(), pathlib.Path("/etc/unit/b").read_text()
    if now != seen:
        print(now, flush=True)
    seen = now
    time.sleep(0.01)
"""
    volumes = [{"name": "unit", "configMap": {"name": "unit"}}]
    mounts = [{"name": "unit", "mountPath": "/etc/unit"}]
    kubectl.apply(config("unit", a="1", b="1"))
    kubectl.apply(pod("watcher", container(script, volumeMounts=mounts), volumes=volumes))
    kubectl.wait_ready("watcher")
    kubectl.apply(config("unit", a="2", b="2"))
    eventually(lambda: "('2', '2')" in kubectl("logs", "watcher"), "the new files")


def test_readiness_follows_the_probe(kubectl: Kubectl) -> None:
    probe = {"httpGet": {"port": "http", "path": "/flag"}, "periodSeconds": 1}
    probe |= {"failureThreshold": 1}
    server = container(
        SERVE,
        env=[POD_IP],
        workingDir="/flags",
        ports=[{"name": "http", "containerPort": 8080}],
        readinessProbe=probe,
        volumeMounts=[{"name": "flags", "mountPath": "/flags"}],
    )
    volumes = [{"name": "flags", "configMap": {"name": "flags", "optional": True}}]
    kubectl.apply(pod("server", server, volumes=volumes))
    eventually(lambda: status_of(kubectl, "server")["started"], "the container runs")
    assert not status_of(kubectl, "server")["ready"]
    kubectl.apply(config("flags", flag="up"))
    kubectl.wait_ready("server")
    kubectl.apply(config("flags", other="x"))
    eventually(lambda: not status_of(kubectl, "server")["ready"], "not ready again")
    assert status_of(kubectl, "server")["restartCount"] == 0


def test_a_failed_liveness_probe_restarts_the_container(kubectl: Kubectl) -> None:
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    kubectl.apply(pod("sick", container("import time; time.sleep(99)", livenessProbe=probe)))
    eventually(lambda: status_of(kubectl, "sick")["restartCount"] >= 1, "a restart")


def test_a_container_that_ends_is_restarted_with_growing_waits(kubectl: Kubectl) -> None:
    script = "import sys; open('/dev/termination-log','w').write('boom'); sys.exit(3)"
    kubectl.apply(pod("failing", container(script)))

    def waiting() -> bool:
        state = status_of(kubectl, "failing")["state"]
        return bool(state.get("waiting", {}).get("reason") == "CrashLoopBackOff")

    eventually(waiting, "CrashLoopBackOff")
    eventually(lambda: status_of(kubectl, "failing")["restartCount"] >= 3, "three restarts")
    last = status_of(kubectl, "failing")["lastState"]["terminated"]
    assert (last["exitCode"], last["message"]) == (3, "boom")


@pytest.mark.parametrize(
    ("policy", "code", "phase"),
    [("Never", 0, "Succeeded"), ("Never", 1, "Failed"), ("OnFailure", 0, "Succeeded")],
)
def test_a_pod_that_may_end_ends(kubectl: Kubectl, policy: str, code: int, phase: str) -> None:
    kubectl.apply(pod("job", container(f"raise SystemExit({code})"), restartPolicy=policy))
    eventually(lambda: kubectl.get("pod", "job")["status"]["phase"] == phase, phase)


def test_init_containers_run_first_and_in_order(kubectl: Kubectl) -> None:
    share = {"volumeMounts": [{"name": "share", "mountPath": "/share"}]}
    add = "f = open('/share/log', 'a'); f.write('{}'); f.close()"
    init = [container(add.format(n), **share) | {"name": f"init-{n}"} for n in (1, 2)]
    script = "import time; print(open('/share/log').read(), flush=True); time.sleep(99)"
    volumes = [{"name": "share", "emptyDir": {}}]
    main = container(script, **share)
    kubectl.apply(pod("staged", main, initContainers=init, volumes=volumes))
    kubectl.wait_ready("staged")
    eventually(lambda: kubectl("logs", "staged").strip() == "12", "both ran before, in order")


def test_deletion_runs_the_hook_then_term_then_kill(
    cluster: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    script = """
import pathlib, signal, time
def term(*_):
    print("term", pathlib.Path("/share/hook").exists(), flush=True)
signal.signal(signal.SIGTERM, term)
print("up", flush=True)
while True:
    time.sleep(0.1)
"""
    hook = {"preStop": {"exec": {"command": ["touch", "/share/hook"]}}}
    mounts = [{"name": "share", "mountPath": "/share"}]
    stubborn = container(script, lifecycle=hook, volumeMounts=mounts)
    volumes = [{"name": "share", "emptyDir": {}}]
    kubectl.apply(pod("stubborn", stubborn, volumes=volumes))
    kubectl.wait_ready("stubborn")
    eventually(lambda: "up" in kubectl("logs", "stubborn"), "the handler is set")
    began = time.monotonic()
    kubectl("delete", "pod", "stubborn", "--grace-period=2")
    assert 1.9 < time.monotonic() - began < 20
    assert "term True" in cluster.process_node().log(namespace, "stubborn")


def test_a_sidecar_starts_before_and_ends_after_the_main_container(
    cluster: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    script = """
import os, signal, sys, time
def note(word):
    with open("/share/log", "a") as log:
        log.write(f"{os.environ['ROLE']} {word},")
def term(*_):
    note("ends")
    print(open("/share/log").read(), flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, term)
note("starts")
time.sleep(999)
"""
    share = {"volumeMounts": [{"name": "share", "mountPath": "/share"}]}
    started = {"exec": {"command": ["grep", "-q", "side starts", "/share/log"]}}
    side = container(
        script,
        env=[{"name": "ROLE", "value": "side"}],
        restartPolicy="Always",
        startupProbe=started | {"periodSeconds": 1},
        **share,
    )
    main = container(
        script,
        env=[{"name": "ROLE", "value": "main"}],
        readinessProbe={"exec": {"command": ["grep", "-q", "main starts", "/share/log"]}},
        **share,
    )
    volumes = [{"name": "share", "emptyDir": {}}]
    first = [side | {"name": "side"}]
    kubectl.apply(pod("pair", main, initContainers=first, volumes=volumes))
    kubectl.wait_ready("pair")
    kubectl("delete", "pod", "pair", "--grace-period=5")
    log = cluster.process_node().log(namespace, "pair", "side")
    assert log.strip() == "side starts,main starts,main ends,side ends,"


@pytest.mark.parametrize(
    ("command", "code"),
    [(["no-such-command"], 127), (["sh", "-c", "kill -KILL -1; kill -TERM $$; exit 4"], 4)],
    ids=["a command that is not there", "process 1 cannot end itself by a signal"],
)
def test_exit_codes_reach_the_status(kubectl: Kubectl, command: list[str], code: int) -> None:
    main = {"name": "main", "image": "any", "command": command}
    kubectl.apply(pod("job", main, restartPolicy="Never"))

    def ended() -> bool:
        return bool(status_of(kubectl, "job")["state"]["terminated"]["exitCode"] == code)

    eventually(lambda: kubectl.get("pod", "job")["status"]["phase"] == "Failed", "it ended")
    assert ended()


def test_a_pod_waits_for_a_config_map_that_comes_later(kubectl: Kubectl) -> None:
    source = {"configMapKeyRef": {"name": "late", "key": "word"}}
    variable = {"name": "WORD", "valueFrom": source}
    script = "import os, time; print(os.environ['WORD'], flush=True); time.sleep(99)"
    kubectl.apply(pod("patient", container(script, env=[variable])))

    def waits() -> bool:
        waiting = status_of(kubectl, "patient")["state"].get("waiting", {})
        return bool(waiting.get("reason") == "CreateContainerConfigError")

    eventually(waits, "CreateContainerConfigError")
    kubectl.apply(config("late", word="hello"))
    kubectl.wait_ready("patient")
    eventually(lambda: kubectl("logs", "patient").strip() == "hello", "the value arrived")


def test_a_containers_grandchildren_end_with_it(
    cluster: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    # A daemon that leaves its session and its parent: nothing but the namespace holds it.
    marker = f"marker-{namespace}"
    script = f"""
import subprocess, time
subprocess.Popen(["setsid", "sh", "-c", "sleep 1000; : {marker}"])
time.sleep(999)
"""
    kubectl.apply(pod("parent", container(script)))
    kubectl.wait_ready("parent")
    eventually(lambda: _running(f": {marker}"), "the grandchild runs")
    kubectl("delete", "pod", "parent", "--grace-period=1")
    eventually(lambda: not _running(f": {marker}"), "the grandchild is gone", within=5)


def _running(words: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if words in line and sys.executable not in line and "python" not in line:
            return True
    return False
