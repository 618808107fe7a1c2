"""The operator's own HTTP: liveness, readiness and metrics on one port."""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


@dataclass(slots=True, kw_only=True)
class Probes:
    """`alive` and `ready` answer with what is missing, empty when all is well."""

    alive: Callable[[], str]
    ready: Callable[[], str]
    registry: CollectorRegistry

    async def start(self, host: str, port: int) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        return runner

    async def _alive(self, _: web.Request) -> web.Response:
        return _answer(self.alive())

    async def _ready(self, _: web.Request) -> web.Response:
        return _answer(self.ready())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry),
                            headers={"Content-Type": CONTENT_TYPE_LATEST})  # fmt: skip


def _answer(missing: str) -> web.Response:
    return web.Response(text=f"{missing or 'ok'}\n", status=503 if missing else 200)
