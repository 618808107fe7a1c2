"""An MPS daemon for the time of one script, and the processes that run under its shares."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import Recorder

from mux_runtime.sm.mps import MpsControl, MpsPaths, MpsUnavailable, client_environment

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
PERCENTS = (100, 50, 30, 70, 20, 80, 10, 60, 40, 90)
"""The most telling shares first: a script that is cut has a curve."""


@dataclass(frozen=True)
class Shares:
    """How to start a process at a share. Without MPS there is the whole GPU and nothing else."""

    control: MpsControl | None
    wanted: Sequence[int] = PERCENTS

    @property
    def percents(self) -> Sequence[int]:
        return self.wanted if self.control is not None else (100,)

    def environment(self, percent: int) -> dict[str, str]:
        if self.control is None:
            return {}
        return client_environment(self.control.paths, percent)

    @property
    def outside(self) -> dict[str, str]:
        """A pipe directory in which nobody listens: MPS as it fails, silently."""
        if self.control is None:
            return {}
        return {**self.environment(30), "CUDA_MPS_PIPE_DIRECTORY": str(self.control.paths.outside)}


@contextlib.contextmanager
def mps(record: Recorder, *, user: int | None = None) -> Iterator[Shares]:
    """A daemon of our own, ended by `quit`. Where there can be none, that is a result."""
    with tempfile.TemporaryDirectory(prefix="mux-mps-") as folder:
        paths = MpsPaths(base=Path(folder) / "mps", logs=Path(folder) / "logs")
        control = MpsControl(paths=paths)
        try:
            daemon = _start(control, Path(folder), user)
        except (MpsUnavailable, OSError) as error:
            record.failure("MPS daemon", error)
            yield Shares(None)
            return
        try:
            yield Shares(control, record.percents or PERCENTS)
        finally:
            control.quit()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()


def _start(control: MpsControl, folder: Path, user: int | None) -> "subprocess.Popen[bytes]":
    paths = control.paths
    paths.prepare()
    own: dict[str, Any] = {}
    if user is not None:
        own = {"user": user, "group": user, "extra_groups": []}
        for path in (folder, paths.base, paths.pipe, paths.outside, paths.logs):
            os.chown(path, user, user)
    log = folder / "daemon.log"
    with log.open("ab") as file:
        daemon = subprocess.Popen(
            control.daemon_argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True, preexec_fn=_end_with_parent,
            env={**os.environ, **paths.environment()}, **own,
        )  # fmt: skip
    try:
        control.wait_until_up(lambda: None if daemon.poll() is None else log.read_text()[-400:])
    except BaseException:
        daemon.kill()
        daemon.wait()
        raise
    return daemon


def _end_with_parent() -> None:
    """Between fork and exec: however this script ends, the kernel ends what it started."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A script of ours at a share, told one JSON line at a time."""

    def __init__(self, script: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        line = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=_end_with_parent, env={**os.environ, **environment},
        )  # fmt: skip

    def ask(self, **command: object) -> Any:
        """Sends a command and waits for its answer. RuntimeError when the child fails it."""
        self.tell(**command)
        return self.answer()

    def tell(self, **command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the child ended with code {self.process.wait()}; see its errors")
        reply = json.loads(line)
        if isinstance(reply, dict) and "failed" in reply:
            raise RuntimeError(reply["failed"])
        return reply

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(commands: dict[str, Any]) -> None:
    """The child's side: answers commands by name until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print goes to the errors.
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = commands[command.pop("do")](**command)
        except Exception as error:
            reply = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
