"""A door to the API server that fails on demand: the faults a controller must live with.

`FaultProxy` is a test's handle; the proxy itself is a process (`harness.fault_server`).
"""

import dataclasses
import json
import ssl
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from harness.control_plane import API_PORT, ControlPlane
from harness.processes import Component
from harness.waiting import eventually

PORT = 6444
CONTROL = "/_faults"


class Kind(StrEnum):
    """What happens to a request that matches."""

    ANSWER = "answer"  # `status` instead of the API server's answer
    CLOSE = "close"  # the connection ends before the request is passed on
    LOSE = "lose"  # the API server acts, its answer is lost
    EXPIRE = "expire"  # a watch gets an ERROR event with 410
    CUT = "cut"  # a watch ends `delay` seconds after it was opened
    DELAY = "delay"  # only slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Applies to the next `count` requests whose "METHOD path?query agent" has `match` in it."""

    match: str
    kind: Kind = Kind.ANSWER
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    delay: float = 0.0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that was applied."""

    kind: str
    method: str
    path: str


class FaultProxy:
    """Controls a running proxy. Use `server` in a kubeconfig (`cluster.write_kubeconfig`)."""

    server = f"https://127.0.0.1:{PORT}"

    def __init__(self, certificate: Path) -> None:
        self._context = ssl.create_default_context(cafile=certificate)

    def inject(self, fault: Fault) -> None:
        """Add a fault; the first that matches and has a count left applies."""
        self._control("POST", fault.to_json())

    def clear(self) -> None:
        """Forget all faults and what they hit."""
        self._control("DELETE")

    def cut_watches(self) -> None:
        """End every watch that is open now."""
        self._control("PUT")

    def hits(self) -> list[Hit]:
        return [Hit(**hit) for hit in json.loads(self._control("GET"))]

    def is_up(self) -> bool:
        try:
            self._control("GET")
        except OSError:
            return False
        return True

    def _control(self, method: str, body: str = "") -> str:
        request = urllib.request.Request(
            self.server + CONTROL, data=body.encode() or None, method=method
        )
        with urllib.request.urlopen(request, timeout=5, context=self._context) as answer:
            text: bytes = answer.read()
            return text.decode()

    @classmethod
    @contextmanager
    def running(cls, control_plane: ControlPlane) -> Iterator["FaultProxy"]:
        argv = [sys.executable, "-m", "harness.fault_server", str(PORT), str(API_PORT)]
        argv += [str(control_plane.certificate), str(control_plane.certificate_key)]
        component = Component(
            "fault-proxy",
            argv,
            control_plane.folder / "fault-proxy.log",
            environment={"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        )
        proxy = cls(control_plane.certificate)
        component.start()
        try:
            eventually(proxy.is_up, "the fault proxy answers")
            yield proxy
        finally:
            component.kill()
