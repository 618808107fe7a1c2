"""Child processes that cannot outlive us, and the ones an earlier, killed server left.

A child is started in its own process group through a line of stdlib Python that asks the kernel
to kill it when its parent dies (PR_SET_PDEATHSIG survives exec) and refuses to start when the
parent is gone already. No `preexec_fn`: forking a process with gRPC threads is not safe.

A process is known by pid *and* start time (field 22 of /proc/PID/stat, clock ticks since boot)
*and* command line: a pid alone may by now name somebody else's process.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

_TIED: Final = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0):
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent ended before its child started")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process, told apart from any later one with the same pid.

    `command` is what it was started for: the end of its command line before and after the exec.
    """

    pid: int
    start_ticks: int
    command: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        now = identity_of(self.pid)
        if now is None or now.start_ticks != self.start_ticks:
            return False
        # In the middle of an exec the command line is empty; pid and start time decide then.
        return not now.command or now.command[-len(self.command) :] == self.command


def identity_of(pid: int) -> Identity | None:
    """Who `pid` is now; None when it runs no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    # The command name in parentheses may itself hold spaces and parentheses.
    state, *rest = stat.rpartition(")")[2].split()
    if state in ("Z", "X"):
        return None
    words = tuple(word.decode(errors="replace") for word in command.split(b"\0")[:-1])
    return Identity(pid=pid, start_ticks=int(rest[18]), command=words)


@dataclass(slots=True)
class Child:
    """A running child, its group and its log."""

    name: str
    process: subprocess.Popen[bytes]
    identity: Identity
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; reaps it when it has ended."""
        return self.process.poll()

    def terminate(self) -> None:
        """Asks it to drain and end."""
        _signal(self.process.pid, signal.SIGTERM, group=False)

    def kill_group(self) -> None:
        """Ends it and everything in its process group, now."""
        _signal(self.process.pid, signal.SIGKILL, group=True)

    def log_tail(self, lines: int = 3) -> str:
        """The last lines it wrote; for a message to a person."""
        try:
            text = self.log.read_bytes()[-4096:].decode(errors="replace")
        except OSError:
            return ""
        return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())


def tied(command: Sequence[str]) -> list[str]:
    """`command`, killed by the kernel when the process that starts it ends."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]


def start(
    name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> Child:
    """Starts `command` as a child tied to this process; its output goes to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            tied(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
            env=dict(environment) if environment is not None else None,
        )  # fmt: skip
    seen = identity_of(process.pid)
    identity = Identity(pid=process.pid, start_ticks=seen.start_ticks if seen else -1,
                        command=tuple(command))  # fmt: skip
    return Child(name=name, process=process, identity=identity, log=log)


def end_stale(
    identities: Sequence[Identity], *, grace_s: float = 5.0,
    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
) -> tuple[Identity, ...]:  # fmt: skip
    """Kills those of `identities` that still run, with their groups; the ones that were killed."""
    running = tuple(identity for identity in identities if identity.runs)
    for identity in running:
        _signal(identity.pid, signal.SIGKILL, group=True)
    deadline = clock() + grace_s
    while any(identity.runs for identity in running) and clock() < deadline:
        sleep(0.05)
    return running


def to_document(identity: Identity) -> dict[str, object]:
    """As written to the data directory."""
    return asdict(identity)


def from_document(document: Mapping[str, object]) -> Identity | None:
    """As read from the data directory; None when it is not what was written."""
    pid, ticks, command = (document.get(k) for k in ("pid", "start_ticks", "command"))
    if not isinstance(pid, int) or not isinstance(ticks, int) or not isinstance(command, list):
        return None
    return Identity(pid=pid, start_ticks=ticks, command=tuple(str(word) for word in command))


def _signal(pid: int, number: signal.Signals, *, group: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(pid, number)
