"""Fixtures of the real test cluster.

A test that uses them carries `@pytest.mark.cluster`. Such tests run inside the private namespace of
`harness.namespace`: when pytest was started outside it, it starts itself again inside once it knows
that a cluster test was selected. One cluster per session, one namespace per test.
"""

import secrets
import sys
from collections.abc import Iterator

import pytest

from harness import namespace as private
from harness import tools
from harness.audit import AuditLog
from harness.cluster import Cluster, MakeNode, running_cluster
from harness.commands import Helm, Kubectl
from harness.credentials import User
from harness.fault_proxy import FaultProxy
from harness.kubelet.settings import NodeSettings
from harness.process_node import ProcessNode
from harness.waiting import eventually

# Users without any right of their own, for tests that grant some.
USERS = (User(name="operator"), User(name="visitor"))
# The seat of further kinds of nodes: a real kubelet takes one here.
NODES: dict[str, MakeNode] = {"process": ProcessNode}
# What an image runs when its container names no command: ENTRYPOINT by repository, without tag.
ENTRYPOINTS: dict[str, tuple[str, ...]] = {"muxserve": (sys.executable,)}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Move into the namespace when a cluster test was selected and we are outside."""
    wanted = any(item.get_closest_marker("cluster") for item in session.items)
    if not wanted or session.config.option.collectonly or private.is_inside():
        return
    _build_tools()
    capture = session.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()  # gives the real standard output back
    try:
        private.enter(sys.orig_argv)
    except private.NamespaceError as error:
        pytest.exit(f"cluster tests need a namespace: {error}", returncode=4)


def _build_tools() -> None:
    try:
        tools.build()
    except tools.ToolError as error:
        pytest.exit(f"cluster tests need their tools: {error}", returncode=4)


@pytest.fixture(scope="session", params=sorted(NODES))
def node_kind(request: pytest.FixtureRequest) -> str:
    """Which kubelet runs the pods; every cluster test runs once per kind."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="session")
def cluster(node_kind: str) -> Iterator[Cluster]:
    """The session's cluster: control plane, one node with 8 GPUs, Services."""
    node = NodeSettings(gpus=8, entrypoints=ENTRYPOINTS)
    with running_cluster([node], make_node=NODES[node_kind], users=USERS) as running:
        yield running


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace, deleted afterwards without waiting; the cluster must still be whole."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl()("create", "namespace", name)
    # A pod is refused until its account exists.
    own = cluster.kubectl(name)
    eventually(lambda: own.exists("serviceaccount", "default"), f"the account of {name}")
    yield name
    cluster.check()
    cluster.kubectl()("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubectl(cluster: Cluster, namespace: str) -> Kubectl:
    """kubectl as the administrator, in the test's namespace."""
    return cluster.kubectl(namespace)


@pytest.fixture
def helm(cluster: Cluster, namespace: str) -> Helm:
    """helm as the administrator, in the test's namespace."""
    return cluster.helm(namespace)


@pytest.fixture
def audit(cluster: Cluster) -> AuditLog:
    """What the API server was asked since the test began."""
    return cluster.audit.mark()


@pytest.fixture
def fault_proxy(cluster: Cluster) -> Iterator[FaultProxy]:
    """A door to the API server that fails on demand."""
    with FaultProxy.running(cluster.control_plane) as proxy:
        yield proxy
