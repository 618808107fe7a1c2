"""The process behind `harness.fault_proxy`: passes everything on, except what it shall break.

`python -m harness.fault_server PORT API_PORT CERTIFICATE KEY`
"""

import asyncio
import json
import re
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from harness.fault_proxy import CONTROL, Fault, Kind

# Belong to one connection, or are set anew by the library.
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade"}
_HOP |= {"te", "trailer", "content-encoding", "accept-encoding"}
_REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 403: "Forbidden"}
_REASONS |= {401: "Unauthorized", 504: "Timeout"}


@dataclass(slots=True)
class _Armed:
    fault: Fault
    left: int


@dataclass(slots=True)
class FaultServer:
    """Holds the faults, what they hit, and the watches that are open."""

    upstream: str
    session: aiohttp.ClientSession
    armed: list[_Armed] = field(default_factory=list)
    hits: list[dict[str, str]] = field(default_factory=list)
    watches: set[asyncio.Transport] = field(default_factory=set)

    async def control(self, request: web.Request) -> web.Response:
        match request.method:
            case "POST":
                raw = await request.json()
                fault = Fault(**(raw | {"kind": Kind(raw["kind"])}))
                self.armed.append(_Armed(fault, fault.count))
            case "DELETE":
                self.armed.clear()
                self.hits.clear()
            case "PUT":
                for transport in list(self.watches):
                    transport.close()
        return web.json_response(self.hits)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        fault = self._take(request)
        if fault is None:
            return await self._forward(request)
        if fault.kind is Kind.CUT:
            return await self._forward(request, cut_after=fault.delay)
        await asyncio.sleep(fault.delay)
        match fault.kind:
            case Kind.DELAY:
                return await self._forward(request)
            case Kind.CLOSE:
                return _close(request)
            case Kind.LOSE:
                async with self._ask(request, await request.read()) as answer:
                    await answer.read()
                return _close(request)
            case Kind.EXPIRE:
                event = {"type": "ERROR", "object": _status(410)}
                return web.Response(body=json.dumps(event).encode() + b"\n")
        return web.json_response(_status(fault.status), status=fault.status, headers=fault.headers)

    def _take(self, request: web.Request) -> Fault | None:
        line = f"{request.method} {request.path_qs} {request.headers.get('User-Agent', '')}"
        for armed in self.armed:
            if armed.left and re.search(armed.fault.match, line):
                armed.left -= 1
                hit = {"kind": str(armed.fault.kind), "method": request.method}
                self.hits.append(hit | {"path": request.path_qs})
                return armed.fault
        return None

    def _ask(self, request: web.Request, body: bytes) -> "aiohttp.client._RequestContextManager":
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        return self.session.request(
            request.method,
            self.upstream + request.path_qs,
            headers=headers,
            data=body or None,
            skip_auto_headers=("Content-Type", "User-Agent"),
            allow_redirects=False,
        )

    async def _forward(
        self, request: web.Request, cut_after: float | None = None
    ) -> web.StreamResponse:
        async with self._ask(request, await request.read()) as answer:
            headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            transport = request.transport
            is_watch = "watch=" in request.query_string and transport is not None
            if is_watch and transport is not None:
                self.watches.add(transport)
                if cut_after is not None:
                    asyncio.get_running_loop().call_later(cut_after, transport.close)
            try:
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            finally:
                if transport is not None:
                    self.watches.discard(transport)
            return response


def _close(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _status(code: int) -> dict[str, object]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"injected {code}",
        "reason": _REASONS.get(code, "InternalError"),
        "code": code,
    }


async def run(port: int, api_port: int, certificate: Path, key: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    trusted = ssl.create_default_context(cafile=certificate)
    connector = aiohttp.TCPConnector(ssl=trusted, limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        server = FaultServer(f"https://127.0.0.1:{api_port}", session)
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", CONTROL, server.control)
        application.router.add_route("*", "/{path:.*}", server.serve)
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])))
