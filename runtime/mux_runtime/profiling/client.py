"""A client that asks for tokens by stream and notes when the first and the last one came.

It reads no more of an answer than it needs: on a CPU every instruction of the client is taken from
the engine.
"""

import time
from dataclasses import dataclass
from typing import Final

import aiohttp

_TOKEN: Final = b'"token_ids"'
_DONE: Final = b"data: [DONE]"
_ERROR: Final = b'"error"'


@dataclass(slots=True, kw_only=True)
class Marks:
    """One request; moments of `time.perf_counter`, 0 where a thing did not happen."""

    sent: float
    first: float = 0.0
    last: float = 0.0
    error: str = ""

    @property
    def whole(self) -> bool:
        return not self.error and self.last > 0


def open_session() -> aiohttp.ClientSession:
    """Any number of streams at once, none cut by a time limit."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0),
                                 timeout=aiohttp.ClientTimeout(total=None))  # fmt: skip


async def stream(
    session: aiohttp.ClientSession, url: str, model: str, prompt: list[int], outputs: int
) -> Marks:
    """One completion of exactly `outputs` tokens."""
    body = {"model": model, "prompt": prompt, "max_tokens": outputs, "temperature": 0,
            "stream": True, "ignore_eos": True, "return_token_ids": True}  # fmt: skip
    marks = Marks(sent=time.perf_counter())
    try:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                marks.error = f"{answer.status}: {(await answer.text())[:200]}"
                return marks
            await _read(answer.content, marks)
    except (aiohttp.ClientError, OSError) as error:
        marks.error = repr(error)
    return marks


async def _read(content: aiohttp.StreamReader, marks: Marks) -> None:
    data = b""
    async for data in content.iter_any():
        if _TOKEN in data:
            marks.last = time.perf_counter()
            marks.first = marks.first or marks.last
        if _ERROR in data:
            marks.error = data[:200].decode(errors="replace")
    if _DONE not in data and not marks.error:
        marks.error = "the stream ended before its end"
