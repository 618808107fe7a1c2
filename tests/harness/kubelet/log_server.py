"""Answers `kubectl logs` (also -f, --previous, --tail) for the node's containers."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from harness.kubelet.container import Container
from harness.kubelet.node import LOG_PORT
from harness.kubelet.pod import Pod
from harness.kubelet.pods import Pods
from harness.kubelet.settings import KubeletSettings


class LogServer:
    def __init__(self, pods: Pods) -> None:
        self._pods = pods

    async def answer(self, request: web.Request) -> web.StreamResponse:
        pod, container = self._find(request)
        previous = request.query.get("previous") == "true"
        path = pod.log(container.name, container.state.restarts - previous)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        content = path.read_bytes() if path.exists() else b""
        await response.write(_tail(content, request.query.get("tailLines")))
        if request.query.get("follow") == "true":
            await _follow(path, len(content), pod, response)
        return response

    def _find(self, request: web.Request) -> tuple[Pod, Container]:
        name = request.match_info
        pod = self._pods.find(name["namespace"], name["pod"])
        for container in pod.containers if pod else ():
            if pod is not None and container.name == name["container"]:
                return pod, container
        raise web.HTTPNotFound(text=f"no container {name['container']} in {name['pod']}\n")


async def _follow(path: Path, position: int, pod: Pod, response: web.StreamResponse) -> None:
    while not pod.is_stopping:
        await asyncio.sleep(0.1)
        content = _read_from(path, position)
        if content:
            position += len(content)
            await response.write(content)


def _read_from(path: Path, position: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as log:
        log.seek(position)
        return log.read()


def _tail(content: bytes, lines: str | None) -> bytes:
    if lines is None:
        return content
    return b"".join(content.splitlines(keepends=True)[-int(lines) :]) if int(lines) else b""


@asynccontextmanager
async def serve_logs(pods: Pods, settings: KubeletSettings) -> AsyncIterator[None]:
    """Serve on the node's address; the API server does not verify this certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.certificate, settings.certificate_key)
    application = web.Application()
    route = "/containerLogs/{namespace}/{pod}/{container}"
    application.router.add_get(route, LogServer(pods).answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, settings.node.address, LOG_PORT, ssl_context=context).start()
    try:
        yield
    finally:
        await runner.cleanup()
