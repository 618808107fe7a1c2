"""What the gateway adds to a request, and what front and gateway cost per token.

    python benchmarks/bench_gateway.py [--requests N] [--concurrency C] [--tokens T]

One front, one gateway and the clients are processes of their own on this machine. The front's
generator has its tokens ready, so all that is measured is HTTP, text and forwarding. Each request
streams; half go to the front, half through the gateway, by turns. Prints p50 and p99 of the time
to the first chunk and of the whole stream, both ways, and tokens per second.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import quantiles

import aiohttp

from mux_cli.tiny_models import TinyModel, write
from mux_core.engine import Finish, Output
from mux_core.routes import Endpoint, Route, RouteTable, to_json
from mux_runtime.front.app import Front
from mux_runtime.generation import GenerationRequest, ServedModel

HOST = "127.0.0.1"
MODEL = TinyModel(family="llama", layers=1, hidden=8, heads=1, kv_heads=1, head_dim=8,
                  intermediate=8)  # fmt: skip


class Ready:
    """A generator that has every token at once."""

    def __init__(self, folder: str) -> None:
        self._model = ServedModel(
            model="m", served_name="m", path=folder, port=0, max_model_len=1 << 16,
            kv_limit_tokens=1 << 16, vocab=MODEL.vocab, eos_token_ids=(2,),
        )  # fmt: skip

    def models(self) -> tuple[ServedModel, ...]:
        return (self._model,)

    def count_arrival(self, model: str) -> None:
        pass

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Output]:
        last = request.sampling.max_tokens - 1
        for index in range(last + 1):
            yield Output(rid=request.rid, tokens=(300 + index % 200,),
                         finish=Finish.LENGTH if index == last else None)  # fmt: skip
            await asyncio.sleep(0)


async def serve_front(folder: str, port: int) -> None:
    front = Front(Ready(folder), namespace="bench", pool="bench", unit="u0")
    await front.start(HOST, 0, port)
    await front.sync_models()
    print("ready", flush=True)
    await asyncio.Event().wait()


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(*argv: str) -> Iterator[None]:
    """A child process, once it printed its first line."""
    child = subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"})  # fmt: skip
    try:
        assert child.stdout is not None
        child.stdout.readline()
        yield
    finally:
        child.terminate()
        child.wait()


async def one(session: aiohttp.ClientSession, port: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first chunk and to the end of one stream."""
    body = {"model": "m", "prompt": [300] * 32, "max_tokens": tokens, "stream": True,
            "ignore_eos": True}  # fmt: skip
    start = time.perf_counter()
    async with session.post(f"http://{HOST}:{port}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        await answer.content.readany()
        first = time.perf_counter() - start
        await answer.content.read()
    return first, time.perf_counter() - start


async def load(ports: tuple[int, int], options: argparse.Namespace) -> list[list[float]]:
    """First-chunk and whole times of both ways: [first, whole, first, whole]."""
    found: list[list[float]] = [[], [], [], []]
    gate = asyncio.Semaphore(options.concurrency)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(way: int) -> None:
            async with gate:
                first, whole = await one(session, ports[way], options.tokens)
            found[2 * way].append(first)
            found[2 * way + 1].append(whole)

        await asyncio.gather(*(ask(index % 2) for index in range(options.requests)))
    return found


def shown(seconds: list[float]) -> str:
    cuts = quantiles(seconds, n=100)
    return f"p50 {cuts[49] * 1e3:7.2f} ms   p99 {cuts[98] * 1e3:7.2f} ms"


async def measure(options: argparse.Namespace) -> None:
    front, gateway = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        write(MODEL, Path(folder) / "m")
        table = RouteTable(namespace="bench", generation=1, max_queued_per_model=1 << 20, routes=(
            Route(model="m", served_name="m",
                  endpoints=(Endpoint(unit="u0", host=HOST, port=front),)),))  # fmt: skip
        routes = Path(folder) / "routes.json"
        routes.write_text(to_json(table))
        with (
            started(__file__, "--front", str(Path(folder) / "m"), "--port", str(front)),
            started("-m", "mux_runtime", "gateway", "--routes", str(routes), "--host", HOST,
                    "--port", str(gateway), "--control-port", "0", "--metrics-port", "0"),
        ):  # fmt: skip
            await load((front, gateway), argparse.Namespace(requests=20, concurrency=2, tokens=8))
            begin = time.perf_counter()
            direct_first, direct, through_first, through = await load((front, gateway), options)
            took = time.perf_counter() - begin
    print(f"{options.requests} streams of {options.tokens} tokens, {options.concurrency} at a time")
    print(f"first chunk  direct  {shown(direct_first)}")
    print(f"             gateway {shown(through_first)}")
    print(f"whole stream direct  {shown(direct)}")
    print(f"             gateway {shown(through)}")
    print(f"{options.requests * options.tokens / took:.0f} tokens/s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--front", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.front:
        asyncio.run(serve_front(options.front, options.port))
    else:
        asyncio.run(measure(options))


if __name__ == "__main__":
    main()
