"""A gateway and real fronts behind it, over real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai

from front_builders import ScriptedGenerator
from mux_core.routes import Endpoint, Route, RouteTable
from mux_runtime.front.app import Front
from mux_runtime.gateway.app import Gateway

HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def running_front(generator: ScriptedGenerator, *, internal_port: int = 0,
                        unit: str = "u0") -> AsyncIterator[Front]:  # fmt: skip
    front = Front(generator, namespace="ns", pool="p", unit=unit)
    await front.start(HOST, 0, internal_port)
    await front.sync_models()
    try:
        yield front
    finally:
        await front.close()


@contextlib.asynccontextmanager
async def running_gateway(table: RouteTable | None = None) -> AsyncIterator[Gateway]:
    gateway = Gateway()
    if table is not None:
        gateway.book.apply(table)
    await gateway.start(HOST, 0, metrics_port=0, control_port=0)
    try:
        yield gateway
    finally:
        await gateway.close()


def endpoint(front: Front | int, unit: str = "u0", weight: float = 1.0) -> Endpoint:
    port = front if isinstance(front, int) else front.internal_port
    return Endpoint(unit=unit, host=HOST, port=port, weight=weight)


def table(*endpoints: Endpoint, generation: int = 1, name: str = "alpha", **changes: Any
          ) -> RouteTable:  # fmt: skip
    """One route to `endpoints`; `changes` go to the table."""
    route = Route(model=f"{name}-llm", served_name=name, endpoints=endpoints,
                  reason="" if endpoints else "Starting")  # fmt: skip
    values: dict[str, Any] = {"namespace": "ns", "pool": "p", "generation": generation,
                              "routes": (route,)}  # fmt: skip
    return RouteTable(**{**values, **changes})


def client_of(port: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://{HOST}:{port}/v1", api_key="none", max_retries=0)


async def eventually(probe: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what nobody announces."""
    async with asyncio.timeout(30):
        while not await probe():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def until(gateway: Gateway, *, held: int, name: str = "alpha") -> None:
    """Waits until `held` requests of the model wait at the gateway."""

    async def probe() -> bool:
        return gateway.desk.held(name) == held

    await eventually(probe)
