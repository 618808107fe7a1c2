"""A headless Chromium, asked over its DevTools protocol: pictures, sizes, what a page requests."""

import asyncio
import base64
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browser_path() -> str:
    """The browser of this machine; skips the test where there is none."""
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        found = shutil.which(name) if name else None
        if found:
            return found
    pytest.skip("no Chromium on PATH and none named by CHROMIUM: apt-get install chromium")


class Tab:
    """One page. `requests`: every URL it asked for; `complaints`: console errors, violations."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._socket = socket
        self._number = 0

    async def ask(self, method: str, **params: object) -> dict:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        return await self._until(lambda told: told.get("id") == self._number)

    async def evaluate(self, expression: str) -> object:
        found = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"]["result"]["value"]

    async def open(self, page: Path, *, width: int, dark: bool) -> None:
        """Loads a file in a window of that width, in the scheme the reader prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])
        await self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900,
                       deviceScaleFactor=1, mobile=False)  # fmt: skip
        await self.ask("Page.navigate", url=page.as_uri())
        await self._until(lambda told: told.get("method") == "Page.loadEventFired")

    async def picture(self, path: Path, *, height: int) -> Path:
        """A PNG of the page's top."""
        clip = {"x": 0, "y": 0, "width": await self.evaluate("innerWidth"), "height": height,
                "scale": 1}  # fmt: skip
        found = await self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        with path.open("wb") as out:
            out.write(base64.b64decode(found["result"]["data"]))
        return path

    async def _until(self, wanted) -> dict:
        async for message in self._socket:
            told = json.loads(message.data)
            self._note(told)
            if wanted(told):
                return told
        raise AssertionError("the browser went away")

    def _note(self, told: dict) -> None:
        params = told.get("params", {})
        match told.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))


@asynccontextmanager
async def a_tab(folder: Path) -> AsyncIterator[Tab]:
    """A fresh browser with one tab; its profile lies in `folder`."""
    process = await asyncio.create_subprocess_exec(
        browser_path(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={folder}",
        "about:blank", stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        port = await _port(process.stderr)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                page = next(p for p in await answer.json() if p["type"] == "page")
            url = page["webSocketDebuggerUrl"]
            async with session.ws_connect(url, max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in ("Page", "Network", "Log", "Runtime"):
                    await tab.ask(f"{domain}.enable")
                yield tab
    finally:
        process.terminate()
        await process.communicate()


async def _port(said) -> str:
    async for line in said:
        found = re.search(rb"ws://127\.0\.0\.1:(\d+)/", line)
        if found:
            return found[1].decode()
    raise AssertionError("the browser named no port")
