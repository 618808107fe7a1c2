"""One run of a container: a process tree in its own process and mount namespace.

The tree is `unshare` (outside) and its only child, which is process 1 inside. When process 1
ends the kernel ends all others of the container; when the node's own process ends, however,
`unshare` is killed and takes the container along.
"""

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.kubelet import sandbox
from harness.kubelet.sandbox import Bind

_NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a container's process is started with."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    binds: Sequence[Bind]
    shared_memory: str

    def write(self, path: Path) -> None:
        """For the sandbox, which gets the environment as its own."""
        document = {
            "argv": list(self.argv),
            "folder": self.folder,
            "binds": list(self.binds),
            "shared_memory": self.shared_memory,
        }
        path.write_text(json.dumps(document))


class ContainerProcess:
    """A started container; ends on its own, by a signal or by `kill`."""

    def __init__(self, outer: asyncio.subprocess.Process, environment: Mapping[str, str]) -> None:
        self._outer = outer
        self._environment = dict(environment)

    @classmethod
    async def start(cls, plan: Plan, plan_file: Path, log: Path) -> "ContainerProcess":
        plan.write(plan_file)
        # Full paths, since the container's PATH need not hold these.
        line = [_which("setpriv"), "--pdeathsig", "KILL", _which("unshare"), *_NAMESPACES, "--"]
        line += [sys.executable, "-I", "-S", sandbox.__file__, str(plan_file)]
        with log.open("ab") as output:
            outer = await asyncio.create_subprocess_exec(
                *line,
                env=dict(plan.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return cls(outer, plan.environment)

    @property
    def is_running(self) -> bool:
        return self._outer.returncode is None

    async def wait(self) -> int:
        """The exit code, 128 + N after signal N, as container runtimes say it."""
        code = await self._outer.wait()
        return 128 - code if code < 0 else code

    def send(self, number: signal.Signals) -> None:
        """Signal process 1 of the container, which `unshare` would not pass on."""
        inner = self._inner()
        if inner is None:
            self.kill()
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                inner.send_signal(number)

    def kill(self) -> None:
        if self.is_running:
            self._outer.kill()

    async def execute(self, argv: Sequence[str], seconds: float) -> int:
        """Run a command inside the container; -1 when it takes too long or cannot run."""
        inner = self._inner()
        if inner is None:
            return -1
        line = [_which("nsenter"), "--target", str(inner.pid), "--mount", "--pid", "--root"]
        process = await asyncio.create_subprocess_exec(
            *line,
            "--",
            *argv,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            process.kill()
            return -1

    def _inner(self) -> psutil.Process | None:
        try:
            children = psutil.Process(self._outer.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0] if children else None


def _which(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(f"the process kubelet needs `{name}` (util-linux) on PATH")
    return path
