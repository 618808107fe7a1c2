"""The pool owner and its clients as real processes, and what is left when one is killed."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mux_core.errors import CapacityError, InvariantError, PeerError, SpecError
from mux_runtime.kvpool import wire
from mux_runtime.kvpool.client import PoolClient, Role

KV_BYTES = 8 << 20
CHILD = Path(__file__).parents[1] / "kvpool_child.py"


class Owner:
    """A running `python -m mux_runtime pool` that listens."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.process = subprocess.Popen(pool_command(path))
        self.client().close()

    def client(self) -> PoolClient:
        return PoolClient.connect(self.path)

    def files(self) -> list[str]:
        """What its descriptors point to."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        return [os.readlink(link) for link in folder.iterdir()]


class Child:
    """A client in a process of its own."""

    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.answer() == "connected"

    def tell(self, *call: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, *call: object) -> Any:
        self.tell(*call)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def pool_command(path: Path) -> list[str]:
    return [
        sys.executable, "-m", "mux_runtime", "pool",
        "--socket", str(path), "--arena-bytes", str(KV_BYTES),
    ]  # fmt: skip


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner(tmp_path / "pool.sock")
    yield owner
    owner.process.kill()
    owner.process.wait()


@pytest.fixture
def child(owner: Owner) -> Iterator[Callable[[], Child]]:
    """Starts client processes and ends them."""
    children: list[Child] = []

    def start() -> Child:
        children.append(Child(owner.path))
        return children[-1]

    yield start
    for started in children:
        started.end()


@pytest.fixture
def client(owner: Owner) -> Iterator[PoolClient]:
    with owner.client() as client:
        yield client


def eventually(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)


def first_to_answer(one: Child, other: Child) -> tuple[Child, Child]:
    """Both, the one with an answer first: what two processes send at once comes in any order."""
    answers = selectors.DefaultSelector()
    for child in (one, other):
        assert child.process.stdout is not None
        answers.register(child.process.stdout, selectors.EVENT_READ)
    with answers:
        ready = [key.fileobj for key, _ in answers.select(10)]
    return (one, other) if one.process.stdout in ready else (other, one)


def test_what_one_process_writes_another_reads(child: Callable[[], Child]) -> None:
    one, other = child(), child()
    assert (one.ask("kv"), other.ask("kv")) == (KV_BYTES, KV_BYTES)
    one.ask("write", "kv", 12345, "from one")
    assert other.ask("read", "kv", 12345, 8) == "from one"
    other.ask("write", "kv", KV_BYTES - 4, "back")
    assert one.ask("read", "kv", KV_BYTES - 4, 4) == "back"


def test_weights_are_loaded_once_and_then_read_only(child: Callable[[], Child]) -> None:
    loader, reader = child(), child()
    assert loader.ask("attach", "chat", 10000) == ["loader", ""]
    loader.ask("write", "chat", 0, "weights")
    loader.ask("seal", "chat", "sha256:1")
    assert reader.ask("attach", "chat", 10000) == ["reader", "sha256:1"]
    assert reader.ask("read", "chat", 0, 7) == "weights"
    assert reader.ask("write", "chat", 0, "x")["raised"] == "TypeError"
    assert reader.ask("protect", "chat") != 0
    reader.tell("poke", "chat")
    assert reader.process.wait(10) == -signal.SIGSEGV
    assert loader.ask("read", "chat", 0, 7) == "weights"


def test_who_comes_second_waits_until_the_weights_are_sealed(child: Callable[[], Child]) -> None:
    loader, reader, other = child(), child(), child()
    loader.ask("attach", "chat", 4096)
    reader.tell("attach", "chat", 4096)
    assert other.ask("attach", "code", 4096) == ["loader", ""]
    loader.ask("write", "chat", 0, "late")
    loader.ask("seal", "chat", "d")
    assert reader.answer() == ["reader", "d"]
    assert reader.ask("read", "chat", 0, 4) == "late"


def test_a_loader_killed_in_mid_load_leaves_nothing(
    child: Callable[[], Child], client: PoolClient
) -> None:
    loader = child()
    loader.ask("attach", "chat", 1 << 20)
    loader.ask("write", "chat", 0, "half")
    assert client.state().loading == {"chat": 1 << 20}
    loader.end()
    eventually(lambda: client.state().loading == {})
    again = client.attach("chat", 1 << 20)
    assert (again.role, again.buffer[:4]) == (Role.LOADER, bytes(4))


def test_a_waiting_reader_takes_over_from_a_killed_loader(child: Callable[[], Child]) -> None:
    loader, second, third = child(), child(), child()
    loader.ask("attach", "chat", 4096)
    second.tell("attach", "chat", 4096)
    third.tell("attach", "chat", 4096)
    loader.end()
    takes_over, waits = first_to_answer(second, third)
    assert takes_over.answer() == ["loader", ""]
    takes_over.ask("seal", "chat", "d")
    assert waits.answer() == ["reader", "d"]


def test_sealed_weights_outlive_every_client(child: Callable[[], Child], owner: Owner) -> None:
    loader = child()
    loader.ask("attach", "chat", 4096)
    loader.ask("write", "chat", 0, "kept")
    loader.ask("seal", "chat", "d")
    loader.end()
    with owner.client() as client:
        arena = client.attach("chat", 4096)
        assert (arena.role, arena.buffer[:4]) == (Role.READER, b"kept")


def test_a_killed_owner_leaves_nothing_and_mappings_stay(
    child: Callable[[], Child], owner: Owner
) -> None:
    one = child()
    one.ask("kv")
    one.ask("write", "kv", 0, "still")
    one.ask("attach", "chat", 4096)
    arenas = {file for file in owner.files() if "/dev/shm/" in file or "memfd:" in file}
    assert len(arenas) == 2
    assert all(file.endswith("(deleted)") for file in arenas), "an arena has a name to leave behind"
    owner.process.kill()
    owner.process.wait()
    assert one.ask("read", "kv", 0, 5) == "still"
    assert one.ask("attach", "code", 4096)["raised"] == "PeerError"


def test_an_owner_starts_where_a_killed_one_served(owner: Owner) -> None:
    owner.process.kill()
    owner.process.wait()
    second = Owner(Path(owner.path))
    try:
        with second.client() as client:
            assert client.state().sealed == {}
    finally:
        second.process.terminate()
        assert second.process.wait(10) == 0
    assert not os.path.exists(second.path)


def test_the_owner_ends_with_its_parent(tmp_path: Path) -> None:
    spawn = f"import subprocess, time; p = subprocess.Popen({pool_command(tmp_path / 's')!r})"
    script = f"{spawn}; print(p.pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    orphan = psutil.Process(int(parent.stdout.readline()))
    PoolClient.connect(str(tmp_path / "s")).close()
    parent.kill()
    parent.communicate()
    eventually(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)


def test_no_descriptor_is_left_behind(owner: Owner) -> None:
    with owner.client() as client:
        client.state()
        before, ours = len(owner.files()), len(os.listdir("/proc/self/fd"))
        for turn in range(20):
            with owner.client() as other:
                other.map_kv().close()
                for name in ("sealed", "unsealed"):
                    other.attach(f"{name}{turn}", 4096).close()
                other.seal(f"sealed{turn}", "d")
                client.attach(f"sealed{turn}", 4096).close()
                assert other.drop(f"sealed{turn}")
        eventually(lambda: client.state().loading == {} and len(owner.files()) == before)
        assert len(os.listdir("/proc/self/fd")) == ours


def test_punched_pages_are_given_back(client: PoolClient) -> None:
    kv = client.map_kv()
    kv.buffer[: 64 * 4096] = b"x" * (64 * 4096)
    assert client.state().kv_resident_bytes == 64 * 4096
    client.punch(4096 - 1, 2 * 4096)
    assert client.state().kv_resident_bytes == 63 * 4096
    assert kv.buffer[4095 : 4096 * 2 + 1] == b"x" + bytes(4096) + b"x"
    client.punch(0, KV_BYTES)
    assert client.state().kv_resident_bytes == 0


def test_dropped_weights_stay_mapped_until_closed(client: PoolClient) -> None:
    arena = client.attach("chat", 4096)
    client.seal("chat", "d")
    assert client.state().sealed == {"chat": 4096}
    assert client.drop("chat")
    assert not client.drop("chat")
    arena.buffer[:2] = b"ok"
    assert client.attach("chat", 8192).role is Role.LOADER


def test_refusals_name_what_is_wrong(owner: Owner, client: PoolClient) -> None:
    client.attach("chat", 4096)
    client.seal("chat", "d")
    with pytest.raises(SpecError, match="weights chat: 5000 bytes wanted, the arena has 4096"):
        client.attach("chat", 5000)
    with pytest.raises(SpecError, match="weights code: 0 bytes"):
        client.attach("code", 0)
    with pytest.raises(CapacityError, match=r"weights huge: 8.0 MiB beside 4.0 KiB") as refused:
        client.attach("huge", KV_BYTES)
    assert refused.value.reason
    with pytest.raises(InvariantError, match="sealed by a connection that does not load"):
        client.seal("chat", "again")
    with pytest.raises(SpecError, match=f"the arena has {KV_BYTES}"):
        client.punch(KV_BYTES - 10, 20)
    assert client.state().kv_bytes == KV_BYTES


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\xff\xff\xff\xff", id="longer-than-any-message"),
        pytest.param(b"\0\0\0\5hello", id="not-json"),
        pytest.param(b"\0\0\0\2[]", id="not-an-object"),
    ],
)
def test_a_peer_that_talks_nonsense_is_cut_off(
    owner: Owner, client: PoolClient, sent: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(owner.path)
        raw.sendall(sent)
        assert raw.recv(1) == b""
    assert client.state().kv_bytes == KV_BYTES


def test_an_unknown_operation_is_refused_and_the_connection_lives(owner: Owner) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(owner.path)
        for wrong in (
            {"op": "format"},
            {"op": "attach"},
            {"op": "punch", "start": [], "length": 1},
        ):
            wire.send(raw, wrong)
            reply, _ = wire.receive(raw)
            assert reply["error"] == "spec"
        whole = wire.encode({"op": "state"})
        for byte in whole:
            raw.sendall(bytes([byte]))
        assert wire.receive(raw)[0]["kv_bytes"] == KV_BYTES


def test_a_missing_owner_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"nobody listens on .*pool\.sock"):
        PoolClient.connect(str(tmp_path / "pool.sock"), timeout_s=0)


def test_the_owner_is_small(owner: Owner) -> None:
    modules = subprocess.run(
        [sys.executable, "-c", "import sys, mux_runtime.kvpool.owner; print(*sys.modules)"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert {"torch", "numpy", "asyncio", "mux_native"}.isdisjoint(modules)
    assert psutil.Process(owner.process.pid).memory_info().rss < 20 << 20
