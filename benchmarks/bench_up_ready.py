"""How long `muxserve up` takes to serve the demo's three models, and what it holds resident.

    python benchmarks/bench_up_ready.py [--repeat 3]

Seconds: from starting the process to its `ready` line, wall clock. Memory: the sum of PSS (each
shared page divided among those that share it, /proc/PID/smaps_rollup) over the process tree, once
idle after ready and once after a burst of requests. The KV arena counts where its pages were used.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from load import random_asks, run_load
from mux_cli.tiny_models import DEMO, write_demo
from up_server import UpServer, muxserve_up

GOAL_S, GOAL_BYTES = 15.0, 2.5 * (1 << 30)


def pss_bytes(pid: int) -> int:
    """One process's proportional share of resident memory."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def by_role(server: UpServer) -> dict[str, tuple[int, int]]:
    """Processes and their PSS by role."""
    found: dict[str, tuple[int, int]] = {}
    for process in server.tree():
        words = " ".join(process.cmdline())
        role = re.search(r"mux_runtime(?:\.engines\.torch| (\w+))|mux_cli\.main (\w+)", words)
        name = "other" if role is None else role[1] or role[2] or "engine host"
        count, size = found.get(name, (0, 0))
        found[name] = (count + 1, size + pss_bytes(process.pid))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
        models = write_demo(Path(folder) / "models")
        print(f"{len(models)} models, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} "
              "before the first start", flush=True)  # fmt: skip
        for number in range(1, repeat + 1):
            one_start(Path(folder) / str(number), models, number)


def one_start(folder: Path, models: dict[str, Path], number: int) -> None:
    begun = time.perf_counter()
    with muxserve_up(folder, models) as server:
        ready_s = time.perf_counter() - begun
        idle = by_role(server)
        asyncio.run(run_load(server.url, random_asks(number, sorted(DEMO), 30, cancelled=0)))
        loaded = by_role(server)
        ending = time.perf_counter()
        server.end()
        end_s = time.perf_counter() - ending
    total = sum(size for _, size in idle.values())
    after = sum(size for _, size in loaded.values())
    print(f"start {number}: ready in {ready_s:.1f} s (goal < {GOAL_S:.0f}), ended in {end_s:.1f} "
          f"s; PSS {total / (1 << 30):.2f} GiB idle, {after / (1 << 30):.2f} GiB after load "
          f"(goal < {GOAL_BYTES / (1 << 30):.1f})")  # fmt: skip
    for role, (count, size) in sorted(idle.items(), key=lambda item: -item[1][1]):
        print(f"    {count} x {role}: {size / (1 << 20):.0f} MiB")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
