"""Startup, readiness and liveness probes of one container."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from harness.api import Object

Execute = Callable[[list[str], float], Awaitable[int]]

# A real kubelet waits a whole period; a container that has never been up is asked more often
# for its first seconds, which makes a test's pods ready when they are.
_EAGER_PERIOD = 0.1
_EAGER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A change of opinion: the threshold of successes or failures in a row was reached."""

    is_good: bool
    message: str = ""


class Prober:
    def __init__(self, container: Object, address: str, execute: Execute) -> None:
        self._container = container
        self._address = address
        self._execute = execute

    async def verdicts(self, kind: str) -> AsyncIterator[Verdict]:
        """Every change of opinion of the container's probe `kind`; none without a probe."""
        probe = self._container.get(kind)
        if probe is None:
            return
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        began = asyncio.get_running_loop().time()
        good = bad = 0
        opinion: bool | None = None
        while True:
            problem = await self.check(probe)
            good, bad = (0, bad + 1) if problem else (good + 1, 0)
            if good >= probe.get("successThreshold", 1) and opinion is not True:
                opinion = True
                yield Verdict(True)
            elif bad >= probe.get("failureThreshold", 3) and opinion is not False:
                opinion = False
                yield Verdict(False, problem)
            young = asyncio.get_running_loop().time() - began < _EAGER_SECONDS
            eager = young and opinion is not True and kind == "readinessProbe"
            await asyncio.sleep(_EAGER_PERIOD if eager else probe.get("periodSeconds", 10))

    async def check(self, probe: Object) -> str:
        """Ask once; the problem, or nothing."""
        seconds = probe.get("timeoutSeconds", 1)
        try:
            if "httpGet" in probe:
                return await self._get(probe["httpGet"], seconds)
            if "tcpSocket" in probe:
                return await self._connect(probe["tcpSocket"], seconds)
            code = await self._execute(probe["exec"]["command"], seconds)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return repr(error)
        return f"exit code {code}" if code else ""

    async def _get(self, action: Object, seconds: float) -> str:
        scheme = action.get("scheme", "HTTP").lower()
        host = action.get("host") or self._address
        url = f"{scheme}://{host}:{self._port(action['port'])}{action.get('path', '/')}"
        headers = {item["name"]: item["value"] for item in action.get("httpHeaders") or []}
        timeout = aiohttp.ClientTimeout(total=seconds)
        # A probe never verifies a certificate and never follows a redirect to elsewhere.
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(url, ssl=False, allow_redirects=False) as answer,
        ):
            return "" if 200 <= answer.status < 400 else f"HTTP {answer.status}"

    async def _connect(self, action: Object, seconds: float) -> str:
        host = action.get("host") or self._address
        opening = asyncio.open_connection(host, self._port(action["port"]))
        _, writer = await asyncio.wait_for(opening, seconds)
        writer.close()
        return ""

    def _port(self, port: int | str) -> int:
        if isinstance(port, int):
            return port
        declared = self._container.get("ports") or []
        number: int = next(item["containerPort"] for item in declared if item.get("name") == port)
        return number
