"""The gateway's gRPC door: takes route tables, tells its counters."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Final

import grpc.aio

from mux_core.errors import PeerError, SpecError
from mux_core.reasons import Reason
from mux_core.routes import RouteTable, from_json
from mux_runtime.control import control_pb2 as pb
from mux_runtime.control import control_pb2_grpc
from mux_runtime.gateway.book import RouteBook
from mux_runtime.gateway.metrics import GatewayMetrics, ModelCounters
from mux_runtime.openai.series import Judged

_LONGEST_INTERVAL_S: Final = 10.0
_SHORTEST_INTERVAL_S: Final = 0.1


class GatewayControl(control_pb2_grpc.GatewayControlServicer):
    """One process's control service; `start_id` tells its counters from a predecessor's."""

    def __init__(self, book: RouteBook, metrics: GatewayMetrics) -> None:
        self.start_id = uuid.uuid4().hex
        self._book = book
        self._metrics = metrics
        self._changed = asyncio.Event()
        book.listen(self._notify)

    async def Apply(self, request: pb.ApplyRoutesRequest,
                    context: "grpc.aio.ServicerContext[pb.ApplyRoutesRequest, pb.ApplyReply]",
                    ) -> pb.ApplyReply:  # fmt: skip
        try:
            table = from_json(request.routes_json)
        except SpecError as error:
            return self._reply(Reason.INVALID_SPEC, str(error))
        if not self._book.apply(table):
            return self._reply(
                Reason.STALE,
                f"route table: generation {table.generation} is older than "
                f"{self._book.table.generation}; send a newer one")  # fmt: skip
        return self._reply(None, "")

    async def Watch(self, request: pb.WatchRequest,
                    context: "grpc.aio.ServicerContext[pb.WatchRequest, pb.GatewayStatus]",
                    ) -> AsyncIterator[pb.GatewayStatus]:  # fmt: skip
        wanted = request.interval_s or _LONGEST_INTERVAL_S
        interval = max(_SHORTEST_INTERVAL_S, wanted)
        while True:
            changed = self._changed
            yield self.status()
            try:
                async with asyncio.timeout(interval):
                    await changed.wait()
            except TimeoutError:
                continue

    def status(self) -> pb.GatewayStatus:
        """What this gateway has counted since it started."""
        judged = self._metrics.first_hop.judged
        models = {
            name: _counters(found, judged.get(name, Judged()))
            for name, found in sorted(self._metrics.counters.items())
        }  # fmt: skip
        return pb.GatewayStatus(start_id=self.start_id, generation=self._book.table.generation,
                                models=models)  # fmt: skip

    def _reply(self, reason: Reason | None, message: str) -> pb.ApplyReply:
        return pb.ApplyReply(accepted=reason is None, generation=self._book.table.generation,
                             reason="" if reason is None else reason.value,
                             message=message)  # fmt: skip

    def _notify(self, _: RouteTable) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _counters(found: ModelCounters, judged: Judged) -> pb.Counters:
    return pb.Counters(arrivals=found.arrivals, rejected=found.rejected,
                       cancelled=found.cancelled, slo_judged=judged.judged,
                       slo_met=judged.met)  # fmt: skip


async def serve(control: GatewayControl, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Starts the service; returns it with its port. Raises PeerError when the port is taken."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    control_pb2_grpc.add_GatewayControlServicer_to_server(control, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise PeerError(f"control port {host}:{port}: cannot listen; free it or choose "
                        "another") from error  # fmt: skip
    await server.start()
    return server, bound
