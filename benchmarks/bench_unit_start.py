"""How long a unit with the three demo models takes to be ready, and how much memory it holds.

    python benchmarks/bench_unit_start.py [--runs N]

Starts the real process tree (supervisor, pool owner, brain, six engine hosts) on this machine's
CPU, waits until every model answers in /v1/models, and prints seconds, CPU seconds spent by the
tree, and PSS (resident memory, shared pages counted once). Goals: 15 s on 2 cores, 2.5 GiB.
Nothing else should run meanwhile; the load average is printed to tell.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from mux_cli.tiny_models import write_demo
from mux_core.unitspec import Device, MemberSpec, UnitSpec, to_json

HOST = "127.0.0.1"
LIMIT_S = 300


def spec(models: dict[str, Path]) -> UnitSpec:
    members = tuple(
        MemberSpec(
            model=name, served_name=name, path=str(path), prefill_percent=60, decode_percent=30
        )
        for name, path in sorted(models.items())
    )
    return UnitSpec(unit="bench", pool="bench", namespace="bench", generation=1, incarnation=1,
                    device=Device.CPU, gpus=1, memory_bytes=256 << 20, members=members)  # fmt: skip


def free_ports(count: int) -> list[str]:
    socks = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [str(sock.getsockname()[1]) for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def served(port: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/v1/models") as answer:
            return len(json.load(answer)["data"])
    except OSError:
        return 0


def once(folder: Path, models: dict[str, Path]) -> None:
    file = folder / "spec.json"
    file.write_text(to_json(spec(models)))
    http, internal, metrics, control = free_ports(4)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as run_dir:
        unit = subprocess.Popen(
            [sys.executable, "-m", "mux_runtime", "unit", "--spec", str(file), "--run-dir",
             f"{run_dir}/run", "--host", HOST, "--http-port", http, "--internal-port", internal,
             "--metrics-port", metrics, "--control-port", control], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while served(http) < len(models):
                if unit.poll() is not None or time.monotonic() - begin > LIMIT_S:
                    raise SystemExit(f"the unit is not ready after {LIMIT_S} s, or ended")
                time.sleep(0.05)
            print(report(unit.pid, time.monotonic() - begin))
        finally:
            unit.terminate()
            unit.wait()


def report(pid: int, seconds: float) -> str:
    root = psutil.Process(pid)
    tree = [root, *root.children(recursive=True)]
    cpu = sum(p.cpu_times().user + p.cpu_times().system for p in tree)
    pss = sum(p.memory_full_info().pss for p in tree) / (1 << 20)
    return (f"ready in {seconds:.1f} s, {cpu:.1f} CPU s, {len(tree)} processes, PSS {pss:.0f} MiB "
            f"(load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        models = write_demo(Path(folder) / "models")
        for _ in range(runs):
            once(Path(folder), models)


if __name__ == "__main__":
    main()
