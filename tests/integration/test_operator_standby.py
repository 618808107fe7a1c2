"""Two operators: one leads, the other takes over."""

from pathlib import Path

import pytest

from harness.cluster import Cluster
from harness.waiting import eventually
from operator_builders import llm_manifest
from operator_cluster import Installed, install_crds, installed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def leader(install: Installed) -> str:
    lease = install.kubectl.get("lease", "muxserve-operator")
    return str(lease["spec"].get("holderIdentity", ""))


def decided(install: Installed, model: str) -> bool:
    return install.condition(model).get("reason") == "UnsupportedSource"


def both_operators(install: Installed) -> set[str]:
    """The names of the two pods, as soon as the Deployment's controller made them."""
    names = {str(pod["metadata"]["name"]) for pod in install.operator_pods()}
    assert len(names) == 2
    return names


def test_a_standby_leads_when_the_leader_is_killed_and_only_one_writes(
    cluster: Cluster, tmp_path: Path
) -> None:
    install_crds(cluster)
    remote = {"uri": "hf://org/model"}
    with installed(cluster, tmp_path, operators=2) as install:
        names = eventually(lambda: both_operators(install), "two operator pods")
        install.kubectl.apply(llm_manifest("before", model=remote))
        eventually(lambda: decided(install, "before"), "the first is judged", within=60)
        first = leader(install)
        assert first in names
        install.kubectl("delete", "pod", first, "--grace-period=0", "--force")
        install.kubectl.apply(llm_manifest("after", model=remote))
        eventually(lambda: decided(install, "after"), "the second is judged", within=60)
        assert leader(install) not in ("", first)
