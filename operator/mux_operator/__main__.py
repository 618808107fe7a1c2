"""`python -m mux_operator`: the operator in a cluster.

A standby serves probes and metrics and waits for the Lease; the leader watches and reconciles.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mux_core.errors import MuxError, PeerError
from mux_operator import handlers
from mux_operator.kube import Api, KubeCluster, NotThere
from mux_operator.lease import Election
from mux_operator.metrics import Metrics
from mux_operator.probes import Probes
from mux_operator.profiles import Profiles, read_profiles
from mux_operator.reconciler import Reconciler
from mux_operator.search import SearchProcess

log = logging.getLogger("mux_operator")

LAG_S = 60.0
"""A loop that did not finish a cycle for so long, with work due, hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line said; each has its environment variable."""

    image: str
    namespaces: tuple[str, ...]
    lease_namespace: str
    gateway_url: str
    host: str
    port: int
    read_nodes: bool
    identity: str
    profiles: tuple[Path, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when told to end, 1 when leadership or the watch is lost."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr,
                        format="%(asctime)s %(levelname)s %(name)s %(message)s")  # fmt: skip
    settings = _settings(argv)
    try:
        asyncio.run(_until_told(settings))
    except* MuxError as group:
        log.error("ended: %s", "; ".join(str(error) for error in _leaves(group)))
        sys.exit(1)
    return 0


def _leaves(group: BaseExceptionGroup[MuxError]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _settings(argv: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(prog="python -m mux_operator", description=__doc__)
    env = os.environ
    parser.add_argument("--image", default=env.get("MUXSERVE_IMAGE", ""),
                        help="image of unit and inspect pods")  # fmt: skip
    parser.add_argument("--namespace", action="append", default=None,
                        help="namespace to watch; repeat it; none: all")  # fmt: skip
    parser.add_argument("--lease-namespace", default=env.get("POD_NAMESPACE", "default"))
    parser.add_argument("--gateway-url", default=env.get("MUXSERVE_GATEWAY_URL", ""),
                        help="URL shown in statuses; {namespace} is replaced")  # fmt: skip
    parser.add_argument("--host", default="0.0.0.0", help="address of probes and metrics")
    parser.add_argument("--port", type=int, default=8080, help="probes and metrics")
    parser.add_argument("--no-nodes", action="store_true",
                        help="do not read nodes; pools then need gpu.static")  # fmt: skip
    parser.add_argument("--profiles", type=Path, action="append", metavar="PATH",
                        default=[Path(word) for word in env.get("MUXSERVE_PROFILES", "").split()],
                        help="step times that muxserve profile measured: a file, or a folder such "
                        "as a mounted ConfigMap; repeat it")  # fmt: skip
    someone = f"{socket.gethostname()}-{os.getpid()}"
    parser.add_argument("--identity", default=env.get("POD_NAME", someone),
                        help="name in the Lease; a pod that restarts keeps it")  # fmt: skip
    options = parser.parse_args(argv)
    if not options.image:
        parser.error("--image is missing; name the image that unit pods run")
    return Settings(
        image=options.image, namespaces=tuple(options.namespace or ()),
        lease_namespace=options.lease_namespace, gateway_url=options.gateway_url,
        host=options.host, port=options.port, read_nodes=not options.no_nodes,
        identity=options.identity, profiles=tuple(options.profiles),
    )  # fmt: skip


async def _until_told(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    operator = Operator(settings, read_profiles(settings.profiles))
    run = asyncio.create_task(operator.run(), name="operator")
    told = asyncio.create_task(stop.wait(), name="told to end")
    await asyncio.wait({run, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    run.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await run


class Operator:
    """One operator process."""

    def __init__(self, settings: Settings, profiles: Profiles) -> None:
        self._settings = settings
        self._profiles = profiles
        self._metrics = Metrics()
        self._indexes = handlers.Indexes()
        self._synced = asyncio.Event()
        self._reconciler: Reconciler | None = None
        self._election: Election | None = None

    async def run(self) -> None:
        """From the first probe to the end of leadership."""
        probes = Probes(alive=self._stuck, ready=self._missing, registry=self._metrics.registry)
        runner = await probes.start(self._settings.host, self._settings.port)
        api = await Api.connect(self._metrics)
        election = self._election = Election(
            LeaseAtApi(api, self._settings.lease_namespace), LeaseAtApi.NAME,
            self._settings.lease_namespace, self._settings.identity,
            changed=lambda leads: self._metrics.leader.set(int(leads)),
        )  # fmt: skip
        self._metrics.leader.set(0)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(election.run(), name="election")
                await election.leads.wait()
                tasks.create_task(self._lead(api, election), name="lead")
        finally:
            with contextlib.suppress(MuxError):
                await election.release()
            await api.close()
            await runner.cleanup()

    async def _lead(self, api: Api, election: Election) -> None:
        settings = self._settings
        cluster = KubeCluster(api=api, store=self._indexes, image=settings.image,
                              url=settings.gateway_url, clock=time.time)  # fmt: skip
        self._reconciler = Reconciler(cluster, search=SearchProcess(self._profiles),
                                      metrics=self._metrics, may_act=election.leads)  # fmt: skip
        registry = handlers.registry(
            self._indexes, changed=cluster.changed, nodes=settings.read_nodes,
            event=lambda kind, at: self._metrics.last_event.labels(kind).set(at),
        )  # fmt: skip
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(registry), name="watch")
            await self._indexes.complete.wait()
            tasks.create_task(self._reconciler.run(), name="reconcile")

    async def _watch(self, registry: Any) -> None:
        await handlers.watch(registry, namespaces=self._settings.namespaces, ready=self._synced)
        raise PeerError("the watch ended by itself; see the log above")

    def _stuck(self) -> str:
        loop = self._reconciler
        if loop is None or loop.queue.oldest_s < LAG_S:
            return ""
        return f"no reconcile for {loop.queue.oldest_s:.0f} s"

    def _missing(self) -> str:
        """A standby is ready: it serves what a standby serves."""
        if self._election is None:
            return "not connected"
        if self._election.leads.is_set() and not self._synced.is_set():
            return "watches are not synced"
        return ""


class LeaseAtApi:
    """The operator's Lease, by the API server's door."""

    NAME = "muxserve-operator"

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace

    async def read(self) -> dict[str, Any] | None:
        try:
            return dict(await self._api.get("leases", self._namespace, self.NAME))
        except NotThere:
            return None

    async def create(self, lease: dict[str, Any]) -> dict[str, Any]:
        return dict(await self._api.create("leases", self._namespace, lease))

    async def replace(self, lease: dict[str, Any]) -> dict[str, Any]:
        return dict(await self._api.replace("leases", lease))


if __name__ == "__main__":
    sys.exit(main())
