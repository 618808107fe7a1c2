"""One process of a cluster: started, killed, frozen and started again by name."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_ENDS_WITHIN = 10.0


class Component:
    """A long-running command with a log file; owns at most one process at a time."""

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, *, environment: Mapping[str, str] = {}
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        if self.is_running():
            raise RuntimeError(f"{self.name} is running already (pid {self.pid})")
        # It must not outlive the process that started it, however that one ends.
        line = ["setpriv", "--pdeathsig", "KILL", *self.argv]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._environment,
                start_new_session=True,
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and wait; KILL by default, since the API server waits 60 s for its watches."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(_ENDS_WITHIN)
        self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def check_running(self) -> None:
        """Raise with the end of the log when it has ended by itself."""
        if not self.is_running():
            raise RuntimeError(f"{self.name} ended; the end of its log:\n{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
