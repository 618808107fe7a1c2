"""The demo's load: streamed chats to every model at once, and what was seen of them."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console
from rich.live import Live
from rich.table import Table

QUESTIONS: Final = ("What shares one memory?", "Count the blocks, then count them again.")
MAX_TOKENS: Final = 48


@dataclass(slots=True, kw_only=True)
class Chat:
    """One streamed chat: filled while it runs."""

    model: str
    question: str
    text: str = ""
    tokens: int = 0
    ttft_s: float | None = None
    total_s: float = 0.0
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and self.tokens > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All chats, the server's own status and the most KV each model held meanwhile."""

    chats: tuple[Chat, ...]
    status: Mapping[str, Any]
    kv_peak: Mapping[str, int] = field(default_factory=dict)
    unit_kv: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


async def run_chats(url: str, data: Path, console: Console) -> Seen:
    """Sends every question to every model at the same moment; follows the unit's metrics."""
    async with aiohttp.ClientSession() as session:
        models = [m["id"] for m in (await _json(session, f"{url}/v1/models"))["data"]]
        chats = tuple(Chat(model=model, question=q) for q in QUESTIONS for model in sorted(models))
        status = json.loads((data / "status.json").read_text())
        console.print(f"{len(chats)} streamed chats at once, {len(QUESTIONS)} to each model:")
        peak: dict[str, int] = {}
        unit_kv: dict[str, int] = {}
        watch = asyncio.create_task(_watch_kv(session, status, peak, unit_kv))
        begun = time.perf_counter()
        with Live(_table(chats), console=console, refresh_per_second=8) as live:
            running = [asyncio.create_task(_chat(session, url, chat)) for chat in chats]
            while not all(task.done() for task in running):
                await asyncio.wait(running, timeout=0.15)
                live.update(_table(chats))
        seconds = time.perf_counter() - begun
        await asyncio.sleep(0.1)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    return Seen(chats=chats, status=status, kv_peak=peak, unit_kv=unit_kv, seconds=seconds)


async def _chat(session: aiohttp.ClientSession, url: str, chat: Chat) -> None:
    body = {
        "model": chat.model, "stream": True, "max_tokens": MAX_TOKENS, "temperature": 0.8,
        "seed": 7, "messages": [{"role": "user", "content": chat.question}],
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    begun = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                chat.error = f"{answer.status}: {(await answer.text())[:200]}"
                return
            async for raw in answer.content:
                line = raw.decode().strip()
                if line.startswith("data: ") and line != "data: [DONE]":
                    _take(chat, json.loads(line[6:]), time.perf_counter() - begun)
    except aiohttp.ClientError as error:
        chat.error = str(error) or type(error).__name__
    finally:
        chat.total_s = time.perf_counter() - begun


def _take(chat: Chat, chunk: dict[str, Any], at: float) -> None:
    if "error" in chunk:
        chat.error = str(chunk["error"].get("message", chunk["error"]))
    for choice in chunk.get("choices", ()):
        text = choice.get("delta", {}).get("content") or ""
        if text and chat.ttft_s is None:
            chat.ttft_s = at
        chat.text += text
        chat.tokens += bool(text)
    usage = chunk.get("usage")
    if usage:
        chat.tokens = usage["completion_tokens"]


async def _watch_kv(
    session: aiohttp.ClientSession, status: Mapping[str, Any], peak: dict[str, int],
    unit_kv: dict[str, int],
) -> None:  # fmt: skip
    """The most KV bytes every model held, and the unit's account, from its metrics port."""
    while True:
        for unit in status.get("units", ()):
            async with session.get(unit["metrics"]) as answer:
                text = await answer.text()
            for name, labels, value in _samples(text):
                if name == "muxserve_model_kv_bytes" and labels.get("kind") == "used":
                    model = labels["model"]
                    peak[model] = max(peak.get(model, 0), int(value))
                elif name == "muxserve_unit_kv_bytes":
                    unit_kv[labels.get("kind", "")] = int(value)
        await asyncio.sleep(0.1)


def _samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(text)
    return [(s.name, s.labels, s.value) for family in families for s in family.samples]


async def _json(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as answer:
        return await answer.json()


def _table(chats: tuple[Chat, ...]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    for name, justify in (("model", "left"), ("TTFT", "right"), ("tokens", "right"),
                          ("what it says (random weights)", "left")):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for chat in chats:
        ttft = "-" if chat.ttft_s is None else f"{chat.ttft_s * 1000:.0f} ms"
        said = chat.error or " ".join(chat.text.split())
        table.add_row(chat.model, ttft, str(chat.tokens), said[-48:])
    return table
