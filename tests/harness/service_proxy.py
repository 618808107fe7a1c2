"""ClusterIPs without kube-proxy: listens on every Service's address, forwards to its endpoints.

It also answers DNS for them. The Service network is local to the loopback device, so a ClusterIP
can be bound like any address.
`python -m harness.service_proxy KUBECONFIG API_PORT`
"""

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness import names
from harness.api import Api, Listed, Object, connect
from harness.namespace import DNS_SERVICE

Address = tuple[str, int]
Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_API_SERVICE = ("default", "kubernetes")
_CHUNK = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One port of one Service, by the name that EndpointSlices use for it."""

    service: tuple[str, str]
    name: str


@dataclass(slots=True)
class Table:
    """The Services and EndpointSlices of the cluster, by uid."""

    api_port: int
    services: dict[str, Object] = field(default_factory=dict)
    slices: dict[str, Object] = field(default_factory=dict)

    def listeners(self) -> dict[Address, Port]:
        wanted: dict[Address, Port] = {}
        for service in self.services.values():
            metadata, address = service["metadata"], service["spec"].get("clusterIP") or "None"
            if address == "None":
                continue
            for port in service["spec"].get("ports") or []:
                if port.get("protocol", "TCP") != "TCP":
                    continue
                wanted[address, port["port"]] = Port(
                    service=(metadata["namespace"], metadata["name"]), name=port.get("name", "")
                )
        return wanted

    def addresses(self, name: str) -> list[str] | None:
        """What DNS says: the ClusterIP, a headless Service's ready pods, None if unknown."""
        words = name.removesuffix(f".{names.DOMAIN}").split(".")
        if not name.endswith(f".{names.DOMAIN}") or len(words) != 2:
            return None
        for service in self.services.values():
            if [service["metadata"]["name"], service["metadata"]["namespace"]] == words:
                address = service["spec"].get("clusterIP") or "None"
                return self._pods((words[1], words[0])) if address == "None" else [address]
        return None

    def _pods(self, service: tuple[str, str]) -> list[str]:
        owned = (item for item in self.slices.values() if _owner(item) == service)
        ready = (e for item in owned for e in item.get("endpoints") or [] if _is_ready(e))
        return sorted({address for endpoint in ready for address in endpoint["addresses"]})

    def backends(self, port: Port) -> list[Address]:
        """Ready endpoints of the port, in a stable order."""
        if port.service == _API_SERVICE:
            # No endpoint names the API server: the API refuses loopback addresses there.
            return [("127.0.0.1", self.api_port)]
        found = []
        for item in self.slices.values():
            if _owner(item) == port.service:
                numbers = (p["port"] for p in item.get("ports") or [] if _name(p) == port.name)
                ready = [e for e in item.get("endpoints") or [] if _is_ready(e)]
                found += [(a, n) for n in numbers for e in ready for a in e["addresses"]]
        return sorted(found)


class ServiceProxy:
    """Keeps one listener per Service port."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._servers: dict[Address, asyncio.Server] = {}
        self._ports: dict[Address, Port] = {}
        self._turn = itertools.count()
        self._lock = asyncio.Lock()

    async def synchronise(self) -> None:
        """Make the listeners those of the table; Services and slices call it at the same time."""
        async with self._lock:
            await self._synchronise()

    async def _synchronise(self) -> None:
        wanted = self._table.listeners()
        for address in [a for a in self._servers if wanted.get(a) != self._ports[a]]:
            self._servers.pop(address).close()
        for address, port in wanted.items():
            if address not in self._servers:
                handler = self._handler(port)
                self._servers[address] = await asyncio.start_server(handler, *address)
                self._ports[address] = port

    def _handler(self, port: Port) -> Connection:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = await self._connect(port)
            if peer is None:
                writer.transport.abort()  # no endpoint: refused, as kube-proxy does
                return
            await asyncio.gather(_pump(reader, peer[1]), _pump(peer[0], writer))
            writer.close()
            peer[1].close()

        return serve

    async def _connect(
        self, port: Port
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        backends = self._table.backends(port)
        for _ in backends:
            address = backends[next(self._turn) % len(backends)]
            try:
                return await asyncio.open_connection(*address)
            except OSError:
                continue
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction until its end, or until either side breaks."""
    try:
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


def _owner(item: Object) -> tuple[str, str]:
    metadata = item["metadata"]
    labels = metadata.get("labels") or {}
    return (metadata["namespace"], labels.get("kubernetes.io/service-name", ""))


def _name(port: Object) -> str:
    return port.get("name") or ""


def _is_ready(endpoint: Object) -> bool:
    return bool(endpoint["conditions"].get("ready"))


async def _follow(api: Api, path: str, store: dict[str, Object], proxy: ServiceProxy) -> None:
    async for event in api.follow(path):
        if isinstance(event, Listed):
            store.clear()
            store.update({item["metadata"]["uid"]: item for item in event.items})
        elif event.is_deleted:
            store.pop(event.object["metadata"]["uid"], None)
        else:
            store[event.object["metadata"]["uid"]] = event.object
        await proxy.synchronise()


async def run(kubeconfig: Path, api_port: int) -> None:
    table = Table(api_port)
    proxy = ServiceProxy(table)
    await names.serve(DNS_SERVICE, table.addresses)
    async with connect(kubeconfig) as api:
        await asyncio.gather(
            _follow(api, "/api/v1/services", table.services, proxy),
            _follow(api, "/apis/discovery.k8s.io/v1/endpointslices", table.slices, proxy),
        )


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
