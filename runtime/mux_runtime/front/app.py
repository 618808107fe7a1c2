"""The front of a unit: its HTTP ports, opened and closed as models come and go.

    front = Front(generator, namespace=..., pool=..., unit=..., registry=registry)
    await front.start(host, http_port, internal_port)   # answers /health from here on
    await front.sync_models()                           # after every change of what is served
    await front.close()

`sync_models` loads the tokenizers of newly served models (in threads), opens their ports, and
closes the ports of models that are neither served nor in `members`. It may be called as often as
one likes and does not block the event loop; a model appears in /v1/models once it returned.
The front registers its series in `registry`; exposing it is the caller's part.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from mux_core.errors import PeerError
from mux_runtime.front import tokenizer
from mux_runtime.front.catalog import Catalog
from mux_runtime.front.metrics import FrontMetrics, model_exposition
from mux_runtime.front.service import Door, Service
from mux_runtime.generation import Generator, ServedModel
from mux_runtime.openai.answering import error_answers, json_response
from mux_runtime.openai.requests import MAX_BODY_BYTES
from mux_runtime.openai.responses import ModelCard, ModelList
from mux_runtime.openai.series import Judged

_log = logging.getLogger(__name__)

_SHUTDOWN_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A port that is listening."""

    runner: web.AppRunner
    port: int


class Front:
    """Serves OpenAI's API over a generator; one public, one internal, one port per model."""

    def __init__(self, generator: Generator, *, namespace: str, pool: str, unit: str,
                 registry: CollectorRegistry | None = None,
                 max_body_bytes: int = MAX_BODY_BYTES) -> None:  # fmt: skip
        self.registry = CollectorRegistry() if registry is None else registry
        self._metrics = FrontMetrics(self.registry, namespace=namespace, pool=pool, unit=unit)
        self._catalog = Catalog(generator)
        self._service = Service(generator, self._catalog, self._metrics)
        self._generator = generator
        self._max_body_bytes = max_body_bytes
        self._host = ""
        self._doors: dict[str, _Open] = {}
        self._model_ports: dict[str, _Open] = {}
        self._deaf: set[str] = set()  # models whose own port could not be opened

    @property
    def http_port(self) -> int:
        return self._doors["http"].port

    @property
    def internal_port(self) -> int:
        return self._doors["internal"].port

    def model_port(self, model: str) -> int:
        return self._model_ports[model].port

    def failures(self) -> Mapping[str, str]:
        """Served models that cannot be asked, with the reason: a missing or broken tokenizer."""
        return self._catalog.failures()

    def judged(self) -> Mapping[str, Judged]:
        """Requests that came here first, by model, held against its SLO."""
        return self._metrics.first_hop.judged

    async def start(self, host: str, http_port: int, internal_port: int) -> None:
        """Opens both unit-wide ports (0: any free one). Raises PeerError when one is taken."""
        self._host = host
        tokenizer.warm_up()
        self._doors["http"] = await self._open(Door(counts=True), http_port)
        self._doors["internal"] = await self._open(Door(counts=False), internal_port)

    async def sync_models(self, members: Collection[str] = ()) -> None:
        """Brings tokenizers and model ports in line with what the generator serves.

        `members`: models that the unit still has; their ports stay open and answer 503.
        """
        gone = await self._catalog.refresh(members)
        for model in gone:
            await self._close(self._model_ports.pop(model.model, None))
            self._metrics.forget(model.model)
        for loaded in self._catalog.ready():
            await self._open_model_port(loaded.served)

    async def close(self) -> None:
        """Closes all ports; running streams end with an error event."""
        self._service.streams.cut_all()
        for door in (*self._model_ports.values(), *self._doors.values()):
            await self._close(door)
        self._model_ports.clear()
        self._doors.clear()

    async def _open_model_port(self, model: ServedModel) -> None:
        """Opens the model's own port, or moves it to where it is wanted now."""
        listening = self._model_ports.get(model.model)
        if listening is not None and listening.port != model.port:
            await self._close(self._model_ports.pop(model.model))
        if not model.port or model.model in self._model_ports:
            return
        door = Door(counts=True, only=model.model)
        try:
            self._model_ports[model.model] = await self._open(door, model.port)
            self._deaf.discard(model.model)
        except PeerError as error:
            if model.model not in self._deaf:
                self._deaf.add(model.model)
                _log.error("model %s: %s; tried again at every change", model.model, error)

    async def _open(self, door: Door, port: int) -> _Open:
        runner = web.AppRunner(self._app(door), handler_cancellation=True,
                               shutdown_timeout=_SHUTDOWN_S, access_log=None)  # fmt: skip
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise PeerError(f"port {self._host}:{port}: cannot listen ({error.strerror}); free "
                            "it or choose another") from error  # fmt: skip
        return _Open(runner=runner, port=runner.addresses[0][1])

    async def _close(self, door: _Open | None) -> None:
        if door is not None:
            await door.runner.cleanup()

    def _app(self, door: Door) -> web.Application:
        app = web.Application(
            client_max_size=self._max_body_bytes, middlewares=[error_answers(self._max_body_bytes)]
        )
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/v1/models", _with(self._models, door))
        app.router.add_get("/v1/models/{name:.+}", _with(self._one_model, door))
        app.router.add_post("/v1/completions", _with(self._service.completions, door))
        app.router.add_post("/v1/chat/completions", _with(self._service.chat, door))
        if door.only is not None:
            app.router.add_get("/metrics", self._model_metrics(door.only))
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _ready(self, _: web.Request) -> web.Response:
        names = [model.served.served_name for model in self._catalog.ready()]
        return web.json_response({"models": names}, status=200 if names else 503)

    async def _models(self, _: web.Request, door: Door) -> web.Response:
        return json_response(ModelList(data=self._cards(door)))

    async def _one_model(self, http: web.Request, door: Door) -> web.Response:
        name = http.match_info["name"]
        self._catalog.find(name, only=door.only)
        return json_response(next(card for card in self._cards(door) if card.id == name))

    def _cards(self, door: Door) -> list[ModelCard]:
        served = (loaded.served for loaded in self._catalog.ready())
        return [ModelCard(id=model.served_name, created=0, max_model_len=model.max_model_len)
                for model in served if door.only in (None, model.model)]  # fmt: skip

    def _model_metrics(self, model: str) -> Handler:
        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=model_exposition(self.registry, model),
                                headers={"Content-Type": CONTENT_TYPE_LATEST})  # fmt: skip

        return metrics


def _with(
    handler: Callable[[web.Request, Door], Awaitable[web.StreamResponse]], door: Door
) -> Handler:
    async def bound(http: web.Request) -> web.StreamResponse:
        return await handler(http, door)

    return bound
