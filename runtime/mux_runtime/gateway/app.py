"""The gateway as a whole: its HTTP ports, its control port, its life.

gateway = Gateway()
await gateway.start(host, port, metrics_port=..., control_port=...)
await gateway.follow(path)       # in a task: takes tables from a file, too
await gateway.drain(timeout_s)   # refuses new requests, waits for the others
await gateway.close()
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Final

import grpc.aio
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from mux_core.errors import PeerError
from mux_core.routes import RouteTable
from mux_runtime.gateway.book import RouteBook
from mux_runtime.gateway.control import GatewayControl, serve
from mux_runtime.gateway.desk import Desk
from mux_runtime.gateway.metrics import GatewayMetrics
from mux_runtime.gateway.proxy import Proxy
from mux_runtime.gateway.upstream import Units
from mux_runtime.openai import errors
from mux_runtime.openai.answering import error_answers, json_response
from mux_runtime.openai.requests import MAX_BODY_BYTES
from mux_runtime.openai.responses import ModelCard, ModelList

_GRACE_S: Final = 1.0


class Gateway:
    """One OpenAI endpoint for all models of a namespace; holds no state worth keeping."""

    def __init__(self) -> None:
        self.book = RouteBook()
        self.desk = Desk()
        self.metrics = GatewayMetrics(CollectorRegistry(), namespace="", pool="")
        self.control = GatewayControl(self.book, self.metrics)
        self.book.listen(self._table_changed)
        self._units = Units()
        self.proxy = Proxy(self.book, self.desk, self._units, self.metrics)
        self._inside = 0
        self._empty = asyncio.Event()
        self._draining = False
        self._http: web.AppRunner | None = None
        self._metrics_http: web.AppRunner | None = None
        self._grpc: grpc.aio.Server | None = None
        self.http_port = self.metrics_port = self.control_port = 0

    async def start(self, host: str, port: int, *, metrics_port: int, control_port: int) -> None:
        """Opens all ports (0: any free one). Raises PeerError when one is taken."""
        self._grpc, self.control_port = await serve(self.control, host, control_port)
        self._metrics_http, self.metrics_port = await _listen(
            self._metrics_app(), host, metrics_port
        )
        self._http, self.http_port = await _listen(self._app(), host, port)  # fmt: skip

    async def follow(self, path: Path) -> None:
        """Takes tables from a file whenever it changes; never returns."""
        await self.book.follow(path)

    async def drain(self, timeout_s: float) -> None:
        """Refuses new requests and gives the others time to end."""
        self._draining = True
        self.desk.send_away()
        if self._inside:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)

    async def close(self) -> None:
        """Closes everything; streams that still run end with an error event."""
        self.desk.send_away()
        self.proxy.streams.cut_all()
        for runner in (self._http, self._metrics_http):
            if runner is not None:
                await runner.cleanup()
        if self._grpc is not None:
            await self._grpc.stop(_GRACE_S)
        await self._units.close()

    def _table_changed(self, table: RouteTable) -> None:
        self.metrics.place(table)
        self.desk.update(table)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES,
                              middlewares=[error_answers(MAX_BODY_BYTES)])  # fmt: skip
        app.router.add_get("/health", _health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/v1/models/{name:.+}", self._one_model)
        for path in ("/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, self._counted(self.proxy.forward))
        return app

    def _metrics_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/metrics", self._exposition)
        app.router.add_get("/health", _health)
        return app

    def _counted(self, handler: Handler) -> Handler:
        """Knows how many requests are inside, for draining."""

        async def inside(http: web.Request) -> web.StreamResponse:
            if self._draining:
                raise errors.unavailable("gateway: is ending; send the request again",
                                         code="draining")  # fmt: skip
            self._inside += 1
            self._empty.clear()
            try:
                return await handler(http)
            finally:
                self._inside -= 1
                if not self._inside:
                    self._empty.set()

        return inside

    async def _ready(self, _: web.Request) -> web.Response:
        ready = self.book.has_table and not self._draining
        return web.json_response({"generation": self.book.table.generation},
                                 status=200 if ready else 503)  # fmt: skip

    async def _list_models(self, _: web.Request) -> web.Response:
        return json_response(ModelList(data=self._cards()))

    async def _one_model(self, http: web.Request) -> web.Response:
        name, cards = http.match_info["name"], self._cards()
        for card in cards:
            if card.id == name:
                return json_response(card)
        raise errors.model_not_found(name, tuple(card.id for card in cards))

    def _cards(self) -> list[ModelCard]:
        serving = (route.served_name for route in self.book.table.routes if route.serving)
        return [ModelCard(id=name, created=0) for name in sorted(serving)]

    async def _exposition(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.metrics.registry),
                            headers={"Content-Type": CONTENT_TYPE_LATEST})  # fmt: skip


async def _health(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _listen(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None,
                           shutdown_timeout=_GRACE_S)  # fmt: skip
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise PeerError(f"port {host}:{port}: cannot listen ({error.strerror}); free it or "
                        "choose another") from error  # fmt: skip
    return runner, runner.addresses[0][1]
