"""A real `muxserve up` for tests: started, watched and checked for what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from mux_cli.demo_files import llm_manifest, write_manifests

START_S: Final = 120.0
"""Ample: the machine may run other suites."""


@dataclass(slots=True)
class UpServer:
    """One server process. `lines` is what it told on standard error so far."""

    manifests: Path
    data: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""
    seen_pids: set[int] = field(default_factory=set)

    def wait_ready(self, timeout_s: float = START_S) -> str:
        """The URL once the server printed it; AssertionError with its words when it ended."""
        wait_until(lambda: bool(self.url) or self.process.poll() is not None, timeout_s)
        assert self.url, "\n".join(self.lines)
        self.tree()
        return self.url

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.data / "status.json").read_text())
        return document

    def model(self, name: str) -> dict[str, Any]:
        return next((m for m in self.status()["models"] if m["name"] == name), {})

    def served(self) -> set[str]:
        _, text = fetch(f"{self.url}/v1/models")
        return {model["id"] for model in json.loads(text)["data"]}

    def tree(self) -> list[psutil.Process]:
        """The server and everything below it; remembered for `leftovers`."""
        top = psutil.Process(self.process.pid)
        found = [top, *top.children(recursive=True)]
        self.seen_pids.update(process.pid for process in found)
        return found

    def role(self, word: str) -> list[psutil.Process]:
        """Processes of the tree with `word` on their command line."""
        return [p for p in self.tree() if word in _command(p)]

    def said(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Ends it; the exit code."""
        if self.process.poll() is None:
            self.tree()
            self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def leftovers(self) -> list[str]:
        """Processes, shared memory, sockets and locks that should not be there any more."""
        left = []
        for pid in self.seen_pids:
            try:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE and "mux" in _command(process):
                    left.append(f"pid {pid}: {_command(process)}")
            except psutil.NoSuchProcess:
                continue
        if self.data.exists():
            left += [str(p) for p in self.data.iterdir() if p.name != "logs"]
        return left


@contextmanager
def muxserve_up(
    folder: Path, models: Mapping[str, Path], *arguments: str, memory: str = "512Mi",
    wait: bool = True,
) -> Iterator[UpServer]:  # fmt: skip
    """Runs it on `models` in `folder`; ended on leaving, hard if need be."""
    manifests = write_manifests(folder / "manifests", models, memory=memory)
    with up_on(manifests, folder / "data", *arguments) as server:
        if wait:
            server.wait_ready()
        yield server


@contextmanager
def up_on(manifests: Path, data: Path, *arguments: str) -> Iterator[UpServer]:
    """Runs it on manifests that are there."""
    command = [sys.executable, "-m", "mux_cli.main", "up", "-f", str(manifests), "--port", "0",
               "--data-dir", str(data), *arguments]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    server = UpServer(manifests=manifests, data=data, process=process)
    readers = [threading.Thread(target=_read_ready, args=(server,)),
               threading.Thread(target=_read_lines, args=(server,))]  # fmt: skip
    for reader in readers:
        reader.start()
    try:
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in readers:
            reader.join()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def add_model(manifests: Path, name: str, path: Path) -> None:
    """Adds a manifest as an editor does: whole, by rename."""
    part = manifests / f".{name}.part"
    part.write_text(llm_manifest(name, path))
    part.rename(manifests / f"{name}.yaml")


def wait_until(condition: Callable[[], bool], timeout_s: float = START_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(0.05)


def fetch(url: str, body: Any = None) -> tuple[int, str]:
    """Status and text of one GET, or of one POST of `body` as JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def shared_memory() -> set[str]:
    """Named segments of this machine."""
    return set(os.listdir("/dev/shm"))


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _read_ready(server: UpServer) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        if line.startswith("ready "):
            server.url = line.split()[1]


def _read_lines(server: UpServer) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line.rstrip())
