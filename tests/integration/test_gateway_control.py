"""Where the gateway's routes come from, what it reports, and how its process ends."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc.aio
import pytest

from front_builders import ScriptedGenerator, served, write_tokenizer
from gateway_builders import (
    HOST,
    client_of,
    endpoint,
    eventually,
    running_front,
    running_gateway,
    table,
    until,
)
from mux_core.routes import RouteTable, to_json
from mux_runtime.control import control_pb2 as pb
from mux_runtime.control import control_pb2_grpc
from mux_runtime.gateway import main
from mux_runtime.gateway.app import Gateway


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chatty"))


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with running_gateway() as gateway:
        yield gateway


@pytest.fixture
async def stub(gateway: Gateway) -> AsyncIterator[control_pb2_grpc.GatewayControlStub]:
    async with grpc.aio.insecure_channel(f"{HOST}:{gateway.control_port}") as channel:
        yield control_pb2_grpc.GatewayControlStub(channel)


async def models(port: int) -> list[str]:
    async with client_of(port) as client:
        return [model.id async for model in client.models.list()]


def apply(found: RouteTable) -> pb.ApplyRoutesRequest:
    return pb.ApplyRoutesRequest(routes_json=to_json(found))


async def test_before_any_table_nothing_is_known_to_be_unknown(gateway: Gateway) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{HOST}:{gateway.http_port}/v1/completions",
                     json={"model": "a", "prompt": "x"}) as answer,
    ):  # fmt: skip
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "no_routes"


async def test_the_newest_generation_wins(
    gateway: Gateway, stub: control_pb2_grpc.GatewayControlStub
) -> None:
    reply = await stub.Apply(apply(table(endpoint(1), generation=5)))
    assert (reply.accepted, reply.generation) == (True, 5)
    reply = await stub.Apply(apply(table(endpoint(1), name="old", generation=4)))
    assert (reply.accepted, reply.generation, reply.reason) == (False, 5, "Stale")
    assert await models(gateway.http_port) == ["alpha"]
    reply = await stub.Apply(apply(table(endpoint(1), name="beta", generation=6)))
    assert reply.accepted
    assert await models(gateway.http_port) == ["beta"]


@pytest.mark.parametrize("text", ["{", "[]", '{"namespace": "ns", "rutes": []}', '{"routes": [1]}'])
async def test_what_is_no_table_is_refused_and_the_last_one_stays(
    gateway: Gateway, stub: control_pb2_grpc.GatewayControlStub, text: str
) -> None:
    await stub.Apply(apply(table(endpoint(1))))
    reply = await stub.Apply(pb.ApplyRoutesRequest(routes_json=text))
    assert (reply.accepted, reply.reason) == (False, "InvalidSpec")
    assert reply.message.startswith("route table")
    assert await models(gateway.http_port) == ["alpha"]


async def test_watch_tells_generation_and_arrivals(
    gateway: Gateway, stub: control_pb2_grpc.GatewayControlStub
) -> None:
    watch = aiter(stub.Watch(pb.WatchRequest(interval_s=0.1)))
    first = await anext(watch)
    assert first.start_id == gateway.control.start_id
    await stub.Apply(apply(table(hold_timeout_s=0.0, generation=3)))
    async with aiohttp.ClientSession() as session:
        await session.post(f"http://{HOST}:{gateway.http_port}/v1/completions",
                           json={"model": "alpha", "prompt": "x"})  # fmt: skip
    async for status in watch:
        if status.models:
            break
    assert status.generation == 3
    assert status.models["alpha-llm"].arrivals == 1
    assert status.models["alpha-llm"].rejected == 1


async def test_a_file_is_followed(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    following = asyncio.create_task(gateway.follow(path))

    async def until(*wanted: str) -> None:
        async def probe() -> bool:
            return await models(gateway.http_port) == list(wanted)

        await eventually(probe)

    await until()
    path.write_text(to_json(table(endpoint(1), generation=1)))
    await until("alpha")
    path.write_text("{")
    path.write_text(to_json(table(endpoint(1), name="beta", generation=2)))
    await until("beta")
    path.unlink()
    path.write_text(to_json(table(endpoint(1), name="late", generation=1)))
    await asyncio.sleep(0.6)
    assert await models(gateway.http_port) == ["beta"], "an older file does not win"
    following.cancel()


async def test_the_metrics_port_tells_everything(gateway: Gateway) -> None:
    gateway.book.apply(table(hold_timeout_s=0.0))
    async with aiohttp.ClientSession() as session:
        await session.post(f"http://{HOST}:{gateway.http_port}/v1/completions",
                           json={"model": "alpha", "prompt": "x"})  # fmt: skip
        async with session.get(f"http://{HOST}:{gateway.metrics_port}/metrics") as answer:
            text = await answer.text()
    labels = 'model="alpha-llm",model_name="alpha",mux_namespace="ns",pool="p"'
    assert f'muxserve_model_requests_total{{hop="gateway",{labels}}} 1.0' in text
    assert f'muxserve_gateway_responses_total{{code="503",{labels}}} 1.0' in text
    gateway.book.apply(table(generation=2, routes=()))
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{HOST}:{gateway.metrics_port}/metrics") as answer,
    ):
        assert "alpha" not in await answer.text()


async def test_a_model_s_series_stay_until_its_last_request_has_left(gateway: Gateway) -> None:
    def inflight() -> float | None:
        return gateway.metrics.registry.get_sample_value(
            "muxserve_gateway_inflight_requests",
            {"mux_namespace": "ns", "pool": "p", "model": "alpha-llm", "model_name": "alpha"},
        )

    gateway.book.apply(table())
    async with aiohttp.ClientSession() as session:
        url = f"http://{HOST}:{gateway.http_port}/v1/completions"
        waiting = asyncio.create_task(session.post(url, json={"model": "alpha", "prompt": "x"}))
        await until(gateway, held=1)
        gateway.metrics.place(table(generation=2, routes=()))
        assert inflight() == 1
        gateway.book.apply(table(generation=2, routes=()))
        assert (await waiting).status == 404
    assert inflight() is None


def test_a_taken_port_ends_the_process_with_its_name(
    unused_tcp_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((HOST, unused_tcp_port)):
        code = main(["--host", HOST, "--port", str(unused_tcp_port), "--control-port", "0",
                     "--metrics-port", "0"])  # fmt: skip
    assert code == 1
    assert f"port {HOST}:{unused_tcp_port}: cannot listen" in capsys.readouterr().err


class Process:
    """A gateway as it runs in a pod."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    async def serves_alpha(self) -> bool:
        return await models(self.port) == ["alpha"]

    async def is_draining(self) -> bool:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{HOST}:{self.port}/ready") as answer,
        ):
            return answer.status == 503


@pytest.fixture
async def process(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[Process]:
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mux_runtime", "gateway", "--routes", str(tmp_path / "routes.json"),
        "--host", HOST, "--port", str(unused_tcp_port), "--control-port", "0",
        "--metrics-port", "0", "--drain-timeout", "20",
        stdout=asyncio.subprocess.PIPE, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert started.stdout is not None
    assert (
        await started.stdout.readline() == f"listening http://{HOST}:{unused_tcp_port}\n".encode()
    )
    yield Process(started, unused_tcp_port)
    if started.returncode is None:
        started.kill()
    await started.wait()


async def test_sigterm_lets_streams_end_and_refuses_new_requests(
    process: Process, checkpoint: Path, tmp_path: Path
) -> None:
    generator = ScriptedGenerator([served("alpha", checkpoint)], pace=asyncio.Semaphore(1))
    async with running_front(generator) as front, client_of(process.port) as client:
        (tmp_path / "routes.json").write_text(to_json(table(endpoint(front))))
        await eventually(process.serves_alpha)
        stream = await client.completions.create(model="alpha", prompt="the fox", stream=True)
        chunks = aiter(stream)
        text = (await anext(chunks)).choices[0].text
        process.process.send_signal(signal.SIGTERM)
        url = f"http://{HOST}:{process.port}"
        await eventually(process.is_draining)
        async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/completions",
                                json={"model": "alpha", "prompt": "x"}) as answer:  # fmt: skip
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "draining")
        assert generator.pace is not None
        for _ in range(99):
            generator.pace.release()
        text += "".join([chunk.choices[0].text async for chunk in chunks])
        assert text == "the fox"
        assert await process.process.wait() == 0


async def test_a_second_signal_cuts_what_still_streams(
    process: Process, checkpoint: Path, tmp_path: Path
) -> None:
    generator = ScriptedGenerator([served("alpha", checkpoint)], pace=asyncio.Semaphore(1))
    async with running_front(generator) as front, aiohttp.ClientSession() as session:
        (tmp_path / "routes.json").write_text(to_json(table(endpoint(front))))
        await eventually(process.serves_alpha)
        body = {"model": "alpha", "prompt": "the fox", "stream": True}
        async with session.post(
            f"http://{HOST}:{process.port}/v1/completions", json=body
        ) as answer:
            await answer.content.readany()
            process.process.send_signal(signal.SIGTERM)
            await eventually(process.is_draining)
            process.process.send_signal(signal.SIGTERM)
            rest = (await answer.content.read()).decode()
        assert json.loads(rest.removeprefix("data: "))["error"]["code"] == "stream_cut"
        await generator.until(lambda: len(generator.aborted) == 1)
        assert await process.process.wait() == 0
