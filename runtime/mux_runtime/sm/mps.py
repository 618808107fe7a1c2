"""The one door to CUDA MPS: a daemon of our own, its control commands, and what it left behind.

The daemon runs in the foreground as a child of the supervisor, with directories of its own under
the unit's run directory; a daemon that somebody else runs is never spoken to. One command at a
time goes to the control program's input, its answer is text. Blocking.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mux_core.errors import PeerError
from mux_core.reasons import Reason

PROGRAM: Final = "nvidia-cuda-mps-control"
PID_FILE: Final = f"{PROGRAM}.pid"
"""The daemon writes its process id there, in its pipe directory."""
DEFAULT_PIPE: Final = Path("/tmp/nvidia-mps")
_STARTS_WITHIN_S: Final = 15.0
_ANSWERS_WITHIN_S: Final = 5.0
_POLL_S: Final = 0.05


class MpsUnavailable(PeerError):
    """There is no MPS daemon, or it does not do what it is told."""

    reason: Final = Reason.MPS_UNAVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsPaths:
    """Directories of one daemon. `outside` stays empty: where it is the pipe directory, a CUDA
    process finds no daemon and has the whole GPU."""

    base: Path
    logs: Path

    @property
    def pipe(self) -> Path:
        return self.base / "pipe"

    @property
    def outside(self) -> Path:
        return self.base / "outside"

    def environment(self) -> dict[str, str]:
        """What daemon, control program and clients must have in common."""
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self.pipe), "CUDA_MPS_LOG_DIRECTORY": str(self.logs)}

    def prepare(self) -> None:
        """Ends what a killed daemon left and makes all directories anew, ours alone."""
        end_leftovers(self.pipe)
        shutil.rmtree(self.base, ignore_errors=True)
        for folder in (self.base, self.pipe, self.outside, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsControl:
    """Speaks to the daemon of `paths`."""

    paths: MpsPaths
    program: str = PROGRAM

    @property
    def daemon_argv(self) -> list[str]:
        return [self.program, "-f"]

    def wait_until_up(self, ended: Callable[[], str | None]) -> None:
        """Returns when the daemon answers. `ended` gives its last words once it has ended."""
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while True:
            if (words := ended()) is not None:
                raise MpsUnavailable(f"MPS: the daemon ended at once: {words or 'without a word'}; "
                                     f"see {self.paths.logs}")  # fmt: skip
            try:
                self.ask("get_server_list")
            except MpsUnavailable as error:
                if time.monotonic() > deadline:
                    raise MpsUnavailable(
                        f"MPS: the daemon does not answer after {_STARTS_WITHIN_S:.0f} s; {error}"
                    ) from error
                time.sleep(_POLL_S)
            else:
                return

    def servers(self) -> tuple[int, ...]:
        """Process ids of the MPS servers; none before the first client."""
        return _pids(self.ask("get_server_list"))

    def clients(self) -> frozenset[int]:
        """Process ids of all clients."""
        return frozenset(pid for server in self.servers()
                         for pid in _pids(self.ask(f"get_client_list {server}")))  # fmt: skip

    def terminate(self, client: int) -> None:
        """Ends a client's work on the GPU, to be done before it is killed in mid-kernel."""
        for server in self.servers():
            if client in _pids(self.ask(f"get_client_list {server}")):
                self.ask(f"terminate_client {server} {client}")

    def quit(self) -> None:
        """Has the daemon end its servers and itself; it need not be there."""
        with contextlib.suppress(MpsUnavailable):
            self.ask("quit -t 2")

    def ask(self, command: str) -> str:
        """The answer to one command. Raises MpsUnavailable."""
        try:
            done = subprocess.run(
                [self.program], input=command + "\n", capture_output=True, text=True, check=False,
                timeout=_ANSWERS_WITHIN_S, env={**os.environ, **self.paths.environment()},
            )  # fmt: skip
        except OSError as error:
            raise MpsUnavailable(f"MPS: {self.program} cannot be run ({error.strerror}); install "
                                 "it, or give the container the driver capability "
                                 "'utility'") from error  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MpsUnavailable(f"MPS: no answer to {command!r} after {_ANSWERS_WITHIN_S:.0f} s; "
                                 "the daemon hangs, end the unit") from error  # fmt: skip
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-200:]
            raise MpsUnavailable(f"MPS: {command!r} failed with {done.returncode}: {said}")
        return done.stdout


def client_environment(paths: MpsPaths, percent: int) -> dict[str, str]:
    """What a CUDA process must have before its first CUDA call to get `percent` of the SMs."""
    return {**paths.environment(), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent)}


def foreign_daemon(environment: Mapping[str, str]) -> int | None:
    """The process id of a running daemon at the place where CUDA looks by itself, if any."""
    inherited = environment.get("CUDA_MPS_PIPE_DIRECTORY")
    for folder in {DEFAULT_PIPE, *([Path(inherited)] if inherited else [])}:
        with contextlib.suppress(OSError, ValueError):
            pid = int((folder / PID_FILE).read_text())
            if Path(f"/proc/{pid}").exists():
                return pid
    return None


def end_leftovers(pipe: Path) -> None:
    """Kills MPS processes of a unit that was killed: those whose environment names our directory.

    A server whose daemon was killed has no parent of ours; no process of anybody else names it.
    """
    for pid in _mps_processes(pipe):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _mps_processes(pipe: Path) -> Iterator[int]:
    wanted = f"CUDA_MPS_PIPE_DIRECTORY={pipe}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if b"nvidia-cuda-mps" in line and wanted in (entry / "environ").read_bytes().split(
                b"\0"
            ):
                yield int(entry.name)


def _pids(answer: str) -> tuple[int, ...]:
    """Lines that are a number and nothing else: a complaint may name one, too."""
    return tuple(int(line) for line in answer.splitlines() if line.strip().isdigit())
