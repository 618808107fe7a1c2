"""How the runtime's processes are started on this machine; pure. A pod starts the same ones."""

import sys
from pathlib import Path

from mux_core.snapshot import UnitAddress
from mux_operator.local.ports import HOST


def unit_command(*, spec: Path, run_dir: Path, address: UnitAddress) -> list[str]:
    """A unit's supervisor, on ports of its own."""
    return [*_runtime("unit"), "--spec", str(spec), "--run-dir", str(run_dir),
            "--host", address.host, "--http-port", str(address.http),
            "--internal-port", str(address.internal), "--metrics-port", str(address.metrics),
            "--control-port", str(address.control)]  # fmt: skip


def gateway_command(*, routes: Path, http: int, metrics: int, control: int) -> list[str]:
    """The gateway: the one OpenAI endpoint."""
    return [*_runtime("gateway"), "--routes", str(routes), "--host", HOST,
            "--http-port", str(http), "--metrics-port", str(metrics),
            "--control-port", str(control)]  # fmt: skip


def inspect_command(folder: str) -> list[str]:
    """Reads the geometry of a checkpoint: prints one JSON object."""
    return [*_runtime("inspect"), folder]


def _runtime(role: str) -> list[str]:
    return [sys.executable, "-m", "mux_runtime", role]
