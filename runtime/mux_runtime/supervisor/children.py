"""Child processes that cannot outlive their parent, reaped on SIGCHLD, with their last words."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
_TAIL_BYTES: Final = 2000
_LOG_BYTES: Final = 4 << 20
"""A log longer than this starts anew when its process does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One running process; `name` is unique among the running ones."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self) -> str:
        """The last lines it wrote."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
            return " | ".join(line for line in lines[-4:] if line.strip())
        return ""


class Children:
    """All children, each in a session of its own: Ctrl-C reaches this process alone.

    `ended` is told each one's exit code (negative: the signal), once.
    """

    def __init__(self, logs: Path, ended: Callable[[Child, int], None]) -> None:
        self._logs = logs
        self._ended = ended
        self._running: dict[str, Child] = {}

    def spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        """Starts a process that the kernel ends with this one. OSError when it cannot."""
        log = self._logs / f"{name.replace('/', '-')}.log"
        mode = "wb" if log.exists() and log.stat().st_size > _LOG_BYTES else "ab"
        with log.open(mode) as file:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env={**os.environ, **(env or {})}, start_new_session=True,
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        child = Child(name=name, process=process, log=log)
        self._running[name] = child
        return child

    def find(self, name: str) -> Child | None:
        return self._running.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._running)

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Signals a running child; False when there is none of that name."""
        child = self._running.get(name)
        if child is None:
            return False
        child.process.send_signal(number)
        return True

    def reap(self) -> None:
        """Notices every child that ended."""
        for child in list(self._running.values()):
            code = child.process.poll()
            if code is not None:
                del self._running[child.name]
                self._ended(child, code)


def _end_with_parent() -> None:
    """Between fork and exec: only system calls."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
