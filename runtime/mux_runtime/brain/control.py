"""UnitControl: the operator says what is wanted, the unit says how it is."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio

from mux_core.errors import PeerError, SpecError
from mux_core.lifecycle import MemberState
from mux_core.reasons import Reason
from mux_core.unitspec import from_json
from mux_runtime.brain.members import UnitMembers
from mux_runtime.control import control_pb2 as pb
from mux_runtime.control.control_pb2_grpc import (
    UnitControlServicer,
    add_UnitControlServicer_to_server,
)

_LEAST_INTERVAL_S = 0.1


class Bell:
    """Wakes everybody who waits, each time it rings."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Until it rings, at most that long."""
        with_ring = self._rung
        try:
            await asyncio.wait_for(with_ring.wait(), timeout_s)
        except TimeoutError:
            return


class UnitControl(UnitControlServicer):
    """One unit's control service. `status` makes the report of now."""

    def __init__(
        self, members: UnitMembers, status: Callable[[], pb.UnitStatus], bell: Bell
    ) -> None:
        self._members = members
        self._status = status
        self._bell = bell

    async def Apply(
        self, request: pb.ApplyRequest,
        context: "grpc.aio.ServicerContext[pb.ApplyRequest, pb.ApplyReply]",
    ) -> pb.ApplyReply:  # fmt: skip
        try:
            spec = from_json(request.spec_json)
        except (SpecError, TypeError) as error:
            return self._refuse(Reason.UNIT_REFUSED_SPEC, str(error))
        refusal = self._members.accept(spec)
        if refusal is not None:
            return self._refuse(refusal.reason, refusal.message)
        self._bell.ring()
        return pb.ApplyReply(accepted=True, generation=self._members.spec.generation)

    async def Watch(
        self, request: pb.WatchRequest,
        context: "grpc.aio.ServicerContext[pb.WatchRequest, pb.UnitStatus]",
    ) -> AsyncIterator[pb.UnitStatus]:  # fmt: skip
        interval_s = max(request.interval_s or 1.0, _LEAST_INTERVAL_S)
        while True:
            yield self._status()
            await self._bell.wait(interval_s)

    async def Drain(
        self, request: pb.DrainRequest,
        context: "grpc.aio.ServicerContext[pb.DrainRequest, pb.DrainReply]",
    ) -> pb.DrainReply:  # fmt: skip
        member = self._members.scheduler.members.get(request.model)
        if member is None or member.state is MemberState.STOPPED:
            return pb.DrainReply(drained=False, message=f"model {request.model}: not in this unit")
        cut = await self._members.scheduler.drain_member(request.model, request.timeout_s)
        return pb.DrainReply(drained=True, cut=cut)

    def _refuse(self, reason: str, message: str) -> pb.ApplyReply:
        return pb.ApplyReply(accepted=False, generation=self._members.spec.generation,
                             reason=reason, message=message)  # fmt: skip


async def serve_control(control: UnitControl, host: str, port: int) -> grpc.aio.Server:
    """A started server. PeerError when the address is taken."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_UnitControlServicer_to_server(control, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise PeerError(f"control port {host}:{port}: cannot listen; free it or choose "
                        "another") from error  # fmt: skip
    if not bound:
        raise PeerError(f"control port {host}:{port}: cannot listen; free it or choose another")
    await server.start()
    return server
