"""`python -m mux_runtime gateway`: runs a gateway until it is told to end.

The first SIGTERM or SIGINT drains: new requests are refused, running ones may end; the second
one ends at once.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

from mux_core.errors import MuxError
from mux_runtime.gateway.app import Gateway


def main(argv: list[str]) -> int:
    """Exit code 0 after a drain, 1 when a port cannot be opened."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr,
                        format="%(asctime)s %(levelname)s %(name)s %(message)s")  # fmt: skip
    try:
        return asyncio.run(_run(_parser().parse_args(argv)))
    except MuxError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mux_runtime gateway")
    parser.add_argument(
        "--routes", type=Path, help="route table (JSON), read again when it changes"
    )
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", "--http-port", dest="port", type=int, default=8000)
    parser.add_argument("--control-port", type=int, default=9090)
    parser.add_argument("--metrics-port", type=int, default=8080)
    parser.add_argument("--drain-timeout", type=float, default=30.0, help="seconds")
    return parser


async def _run(options: argparse.Namespace) -> int:
    signals: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, None)
    gateway = Gateway()
    try:
        if options.routes is not None:
            gateway.book.read(options.routes)
        await gateway.start(options.host, options.port, metrics_port=options.metrics_port,
                            control_port=options.control_port)  # fmt: skip
        print(f"listening http://{options.host}:{gateway.http_port}", flush=True)
        await _serve(gateway, options, signals)
    finally:
        await gateway.close()
    return 0


async def _serve(gateway: Gateway, options: argparse.Namespace,
                 signals: asyncio.Queue[None]) -> None:  # fmt: skip
    """Until the first signal, then drains until done or until the second."""
    async with asyncio.TaskGroup() as tasks:
        following = None
        if options.routes is not None:
            following = tasks.create_task(gateway.follow(options.routes))
        await signals.get()
        if following is not None:
            following.cancel()
    drain = asyncio.create_task(gateway.drain(options.drain_timeout))
    hurry = asyncio.create_task(signals.get())
    _, pending = await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
