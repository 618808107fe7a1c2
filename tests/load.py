"""Streamed completions against a running endpoint, for tests; every request knows its fate."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: when, what, and after how many tokens its client goes away (None: never)."""

    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    delay_s: float = 0.0
    cancel_after: int | None = None
    ignore_eos: bool = False


@dataclass(slots=True, kw_only=True)
class Fate:
    """What became of it. `broken`: an error, or an end without a finish reason."""

    ask: Ask
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str = ""
    ttft_s: float = 0.0
    total_s: float = 0.0

    @property
    def broken(self) -> bool:
        return bool(self.error) or (self.ask.cancel_after is None and self.finish is None)


def random_asks(
    seed: int, models: Sequence[str], count: int, *, vocab: int = 2000, within_s: float = 4.0,
    cancelled: float = 0.25,
) -> list[Ask]:  # fmt: skip
    """Arrivals at random moments, of random lengths, some cancelled midway."""
    draw = Random(seed)
    asks = []
    for _ in range(count):
        max_tokens = draw.randint(2, 40)
        cancel = draw.random() < cancelled
        asks.append(
            Ask(model=draw.choice(list(models)), max_tokens=max_tokens,
                prompt=tuple(draw.randrange(5, vocab) for _ in range(draw.randint(1, 64))),
                delay_s=draw.uniform(0, within_s),
                cancel_after=draw.randint(0, max_tokens - 1) if cancel else None)
        )  # fmt: skip
    return asks


async def run_load(url: str, asks: Sequence[Ask]) -> list[Fate]:
    """All of them at their moments; returns when the last one is done."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return list(await asyncio.gather(*(_one(session, url, ask) for ask in asks)))


async def _one(session: aiohttp.ClientSession, url: str, ask: Ask) -> Fate:
    fate = Fate(ask=ask)
    await asyncio.sleep(ask.delay_s)
    begun = time.perf_counter()
    body = {"model": ask.model, "prompt": list(ask.prompt), "max_tokens": ask.max_tokens,
            "temperature": 0, "stream": True, "return_token_ids": True,
            "ignore_eos": ask.ignore_eos}  # fmt: skip
    try:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                fate.error = f"{answer.status}: {await answer.text()}"
                return fate
            async for raw in answer.content:
                _take(fate, raw.decode().strip())
                fate.total_s = time.perf_counter() - begun
                if fate.tokens and not fate.ttft_s:
                    fate.ttft_s = fate.total_s
                if ask.cancel_after is not None and len(fate.tokens) > ask.cancel_after:
                    return fate
    except (aiohttp.ClientError, TimeoutError) as error:
        fate.error = repr(error)
    return fate


def _take(fate: Fate, line: str) -> None:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    chunk: dict[str, Any] = json.loads(line[6:])
    if "error" in chunk:
        fate.error = str(chunk["error"])
    for choice in chunk.get("choices", ()):
        fate.tokens += choice.get("token_ids") or ()
        fate.finish = choice.get("finish_reason") or fate.finish


def steady_asks(
    model: str, rate: float, seconds: float, *, max_tokens: int = 6, prompts: int = 8
) -> list[Ask]:
    """`rate` requests a second, evenly; few different prompts, so that answers are soon checked."""
    return [
        Ask(model=model, prompt=tuple(range(7, 12 + number % prompts)), max_tokens=max_tokens,
            delay_s=number / rate)
        for number in range(int(rate * seconds))
    ]  # fmt: skip
