"""Types of control_pb2_grpc for grpc.aio; generated, see tools/generate_stubs.py."""

from collections.abc import AsyncIterator

import grpc.aio

from mux_runtime.control import control_pb2 as pb

class UnitControlStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    def Apply(
        self,
        request: pb.ApplyRequest,
        *,
        timeout: float | None = ...,
        wait_for_ready: bool | None = ...,
    ) -> grpc.aio.UnaryUnaryCall[pb.ApplyRequest, pb.ApplyReply]: ...
    def Watch(
        self,
        request: pb.WatchRequest,
        *,
        timeout: float | None = ...,
        wait_for_ready: bool | None = ...,
    ) -> grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.UnitStatus]: ...
    def Drain(
        self,
        request: pb.DrainRequest,
        *,
        timeout: float | None = ...,
        wait_for_ready: bool | None = ...,
    ) -> grpc.aio.UnaryUnaryCall[pb.DrainRequest, pb.DrainReply]: ...

class UnitControlServicer:
    async def Apply(
        self,
        request: pb.ApplyRequest,
        context: grpc.aio.ServicerContext[pb.ApplyRequest, pb.ApplyReply],
    ) -> pb.ApplyReply: ...
    def Watch(
        self,
        request: pb.WatchRequest,
        context: grpc.aio.ServicerContext[pb.WatchRequest, pb.UnitStatus],
    ) -> AsyncIterator[pb.UnitStatus]: ...
    async def Drain(
        self,
        request: pb.DrainRequest,
        context: grpc.aio.ServicerContext[pb.DrainRequest, pb.DrainReply],
    ) -> pb.DrainReply: ...

def add_UnitControlServicer_to_server(
    servicer: UnitControlServicer, server: grpc.aio.Server
) -> None: ...

class GatewayControlStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    def Apply(
        self,
        request: pb.ApplyRoutesRequest,
        *,
        timeout: float | None = ...,
        wait_for_ready: bool | None = ...,
    ) -> grpc.aio.UnaryUnaryCall[pb.ApplyRoutesRequest, pb.ApplyReply]: ...
    def Watch(
        self,
        request: pb.WatchRequest,
        *,
        timeout: float | None = ...,
        wait_for_ready: bool | None = ...,
    ) -> grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.GatewayStatus]: ...

class GatewayControlServicer:
    async def Apply(
        self,
        request: pb.ApplyRoutesRequest,
        context: grpc.aio.ServicerContext[pb.ApplyRoutesRequest, pb.ApplyReply],
    ) -> pb.ApplyReply: ...
    def Watch(
        self,
        request: pb.WatchRequest,
        context: grpc.aio.ServicerContext[pb.WatchRequest, pb.GatewayStatus],
    ) -> AsyncIterator[pb.GatewayStatus]: ...

def add_GatewayControlServicer_to_server(
    servicer: GatewayControlServicer, server: grpc.aio.Server
) -> None: ...
