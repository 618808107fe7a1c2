"""A small asynchronous client of the Kubernetes API for the harness's own processes.

It repeats what every real client repeats (lost connection, 429, 5xx), for ever: a node or a
proxy must survive an API server that is away, and is killed when it is no longer wanted.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Object = dict[str, Any]

STRATEGIC_MERGE = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"

_LONGEST_WAIT = 1.0
_LOST = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


class ApiError(Exception):
    """The API server refused; trying again unchanged does not help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Listed:
    """The complete present state; comes first and after every lost watch."""

    items: list[Object]


@dataclass(frozen=True, slots=True)
class Changed:
    """One object after the list."""

    object: Object
    is_deleted: bool


class Api:
    """Requests and watches as the user of one kubeconfig."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    async def get(self, path: str) -> Object:
        return await self.request("GET", path)

    async def request(
        self, method: str, path: str, body: Object | None = None, *, kind: str = "application/json"
    ) -> Object:
        """Send until the API server answers; raises ApiError on 4xx."""
        wait = 0.05
        while True:
            try:
                return await self._once(method, path, body, kind)
            except _LOST:
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT)

    async def follow(self, path: str, field_selector: str = "") -> AsyncIterator[Listed | Changed]:
        """List, then watch; begins again with a list whenever the watch is lost."""
        while True:
            try:
                listed = await self.get(f"{path}?fieldSelector={field_selector}")
                yield Listed(listed["items"])
                version = listed["metadata"]["resourceVersion"]
                async for event in self._watch(path, field_selector, version):
                    yield event
            except (*_LOST, ApiError, ValueError):
                # 403 is normal for a moment: the Node authorizer learns of a binding later.
                await asyncio.sleep(0.1)

    async def _watch(self, path: str, selector: str, version: str) -> AsyncIterator[Changed]:
        query = f"watch=1&fieldSelector={selector}&resourceVersion={version}"
        timeout = aiohttp.ClientTimeout(total=None, connect=5)
        async with self._session.get(f"{self._server}{path}?{query}", timeout=timeout) as answer:
            if answer.status != 200:
                raise ApiError(answer.status, await answer.text())
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(410, "watch expired")
                yield Changed(event["object"], is_deleted=event["type"] == "DELETED")

    async def _once(self, method: str, path: str, body: Object | None, kind: str) -> Object:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": kind}
        timeout = aiohttp.ClientTimeout(total=15)
        async with self._session.request(
            method, self._server + path, data=data, headers=headers, timeout=timeout
        ) as answer:
            text = await answer.text()
            if answer.status == 429 or answer.status >= 500:
                raise aiohttp.ClientError(text)
            if answer.status >= 400:
                raise ApiError(answer.status, text)
            parsed: Object = json.loads(text)
            return parsed


def _read(kubeconfig: Path) -> Object:
    config: Object = yaml.safe_load(kubeconfig.read_text())
    return config


@asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[Api]:
    """An Api for the one cluster and user of a harness kubeconfig."""
    config = _read(kubeconfig)
    cluster = config["clusters"][0]["cluster"]
    context = ssl.create_default_context(cafile=cluster["certificate-authority"])
    headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    # One watch event is one line; a large object must fit.
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, read_bufsize=2**22
    ) as session:
        yield Api(session, cluster["server"])
