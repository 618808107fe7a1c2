"""The one door to the cluster: what the reconcile loop sees and what it may do.

Two implementations: Kubernetes (`mux_operator.kube`: pods, ConfigMaps, statuses) and this machine
(`mux_operator.local`: process trees, files, printed statuses). The loop knows neither. Calls to
units and gateways (gRPC) are not the door's: their addresses are in the observation and both
implementations are reached alike (`mux_operator.control`).

Errors: PeerError when trying again may help, SpecError when the user's input is at fault. A door
never swallows one.
"""

from collections.abc import Callable
from typing import Protocol

from mux_core.actions import ClusterAction
from mux_core.snapshot import Observation
from mux_core.specs import PoolKey
from mux_core.status import StatusReport


class Cluster(Protocol):
    """Modifies the world only in `apply` and `report`; both idempotent."""

    def pools(self) -> tuple[PoolKey, ...]:
        """Every pool that exists or is named by an LLMDeployment, or still has units; in order."""
        ...

    async def observe(self, key: PoolKey) -> Observation:
        """What is now. From the door's own indexes where it has them: cheap, no lock held."""
        ...

    async def apply(self, key: PoolKey, action: ClusterAction) -> None:
        """Performs one action for the pool; returns when the door has taken it over.

        Doing what is already done succeeds. An object that exists and is not ours is left alone
        (SpecError names it).
        """
        ...

    async def report(self, key: PoolKey, report: StatusReport) -> None:
        """Makes the statuses known: `/status` of the objects, or lines for a person.

        The next observation carries them (`LlmObject.status`), resolved geometry and port
        included, so a restarted operator knows what it knew.
        """
        ...

    def on_change(self, mark: Callable[[PoolKey], None]) -> None:
        """Calls `mark` whenever something about a pool may have changed; cheap and re-entrant."""
        ...
