"""A whole test cluster: control plane, nodes, Services.

`python -m harness.cluster` keeps one up for a person.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from harness import credentials, namespace, tools
from harness.audit import AuditLog
from harness.commands import Helm, Kubectl
from harness.control_plane import API_PORT, SERVER, ControlPlane
from harness.credentials import User, node_user
from harness.folders import data_folder
from harness.kubelet.settings import NodeSettings
from harness.process_node import Node, ProcessNode
from harness.processes import Component
from harness.waiting import eventually

MakeNode = Callable[[ControlPlane, NodeSettings], Node]


class Cluster:
    """Owns every process of the cluster; `stop` leaves none."""

    def __init__(self, control_plane: ControlPlane, nodes: Sequence[Node]) -> None:
        self.control_plane = control_plane
        self.nodes = tuple(nodes)
        self.service_proxy = _service_proxy(control_plane)

    @property
    def folder(self) -> Path:
        return self.control_plane.folder

    @property
    def server(self) -> str:
        return SERVER

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.control_plane.kubeconfig(credentials.ADMIN.name)

    @property
    def audit(self) -> AuditLog:
        return self.control_plane.audit_log

    def kubectl(self, name: str = "default", kubeconfig: Path | None = None) -> Kubectl:
        """kubectl in a namespace, as the administrator or as the user of a kubeconfig."""
        return Kubectl(kubeconfig or self.kubeconfig, name)

    def helm(self, name: str = "default") -> Helm:
        return Helm(self.kubeconfig, name)

    def process_node(self, name: str = "node-0") -> ProcessNode:
        """The node `name`, which must be a process node: it can be killed and has logs."""
        for node in self.nodes:
            if node.name == name and isinstance(node, ProcessNode):
                return node
        raise LookupError(f"no process node {name} among {[node.name for node in self.nodes]}")

    def account_kubeconfig(self, name: str, account: str, *, server: str = SERVER) -> Path:
        """A kubeconfig with a fresh token of a ServiceAccount, as its pod would have."""
        token = self.kubectl(name)("create", "token", account, "--duration=10h").strip()
        return self.write_kubeconfig(f"{name}-{account}", token, server=server)

    def write_kubeconfig(self, file_name: str, token: str, *, server: str) -> Path:
        """A kubeconfig for any token and any door to the API server (a fault proxy's, say)."""
        return credentials.write_kubeconfig(
            self.folder / f"{file_name}-{server.rsplit(':', 1)[1]}.kubeconfig",
            server=server,
            authority=self.control_plane.certificate,
            token=token,
        )

    def start(self) -> None:
        """Return when the API answers and every node is Ready."""
        self.control_plane.start()
        self.service_proxy.start()
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            self.wait_node(node.name)

    def wait_node(self, name: str, *, status: str = "True", within: float = 60.0) -> None:
        """Return when the node's Ready condition has this status."""

        def reached() -> bool:
            found = json.loads(
                self.kubectl()("get", "node", name, "--ignore-not-found", "-o", "json") or "{}"
            )
            conditions = found.get("status", {}).get("conditions", [])
            return any(c["type"] == "Ready" and c["status"] == status for c in conditions)

        eventually(reached, f"node {name} has Ready={status}", within=within)

    def check(self) -> None:
        """Raise when a part has ended that nobody stopped: a later test would fail for it."""
        for part in (*self.control_plane.parts, self.service_proxy):
            part.check_running()
        for node in self.nodes:
            node.check()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        self.service_proxy.kill()
        self.control_plane.stop()


def _service_proxy(control_plane: ControlPlane) -> Component:
    kubeconfig = control_plane.kubeconfig(credentials.ADMIN.name)
    return Component(
        "service-proxy",
        [sys.executable, "-m", "harness.service_proxy", str(kubeconfig), str(API_PORT)],
        control_plane.folder / "service-proxy.log",
        environment={"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )


@contextmanager
def running_cluster(
    nodes: Sequence[NodeSettings] = (NodeSettings(),),
    *,
    make_node: MakeNode = ProcessNode,
    users: Sequence[User] = (),
    controller_flags: Sequence[str] = (),
) -> Iterator[Cluster]:
    """A cluster with a private data folder; both are gone afterwards."""
    everyone = (*users, *(node_user(node.name) for node in nodes))
    with data_folder() as folder:
        plane = ControlPlane(folder, everyone, controller_flags=controller_flags)
        cluster = Cluster(plane, [make_node(plane, node) for node in nodes])
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def main() -> int:
    """Keep a cluster up until Ctrl-C."""
    if not namespace.is_inside():
        namespace.enter([sys.executable, "-m", "harness.cluster"])
    end = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    try:
        tools.build()
        with running_cluster() as cluster:
            _greet(cluster)
            while not end.wait(3600):
                pass
            print("stopping ...", flush=True)
    except (tools.ToolError, namespace.NamespaceError, subprocess.SubprocessError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _greet(cluster: Cluster) -> None:
    kubectl = tools.require("kubectl")
    print(cluster.kubectl()("get", "nodes", "-o", "wide"))
    print(f"KUBECONFIG  {cluster.kubeconfig}")
    print(f"logs        {cluster.folder}/*.log")
    print("enter, in another terminal (the cluster has a network of its own):")
    print(
        f"  {namespace.door()} env KUBECONFIG={cluster.kubeconfig} PATH={kubectl.parent}:$PATH bash"
    )
    print("Ctrl-C ends it and leaves nothing.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
