"""Runs the probes in their order within a time budget, each result written as it is made.

    python3 benchmarks/gpu/run_all.py --seconds 560                    rows 0, 1, 2, 5, 6, 7
    python3 benchmarks/gpu/run_all.py --seconds 560 --rows 3 4
    python3 benchmarks/gpu/run_all.py --device cpu                     shows that all of them run

A row whose time is not left is not begun, and said so. A row that fails does not stop the next.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROWS: dict[int, tuple[str, float]] = {
    0: ("row0_facts.py", 60), 1: ("row1_census.py", 90), 2: ("row2_roofline.py", 150),
    3: ("row3_engine.py", 360), 4: ("row4_pairs.py", 240), 5: ("row5_vmm.py", 90),
    6: ("row6_memory.py", 90), 7: ("row7_conformance.py", 240),
}  # fmt: skip
"""Script, and the seconds after which it begins nothing new."""
FIRST = (0, 1, 2, 5, 6, 7)
"""What fits ten minutes; rows 3 and 4 take the next ten."""
GRACE_S = 60.0
"""A row that has begun its last measurement may take so much longer before it is ended."""
LEAST_S = 45.0


def run_row(row: int, options: Sequence[str], left: float) -> str:
    """How a row ended, in words."""
    script, wanted = ROWS[row]
    if left < LEAST_S:
        return f"left out: {max(0.0, left):.0f} s are left"
    seconds = min(wanted, left - GRACE_S / 2)
    line = [sys.executable, str(HERE / script), "--seconds", f"{seconds:.0f}", *options]
    print(f"=== row {row}: {' '.join(line[1:])}", flush=True)
    begun = time.monotonic()
    process = subprocess.Popen(line, start_new_session=True)
    try:
        code = process.wait(min(seconds + GRACE_S, left))
    except subprocess.TimeoutExpired:
        end(process)
        return f"ended after {time.monotonic() - begun:.0f} s; its file holds what it had"
    return f"{'done' if code == 0 else f'FAILED with {code}'} in {time.monotonic() - begun:.0f} s"


def end(process: "subprocess.Popen[bytes]") -> None:
    """Has a row let go of its daemon and hosts as on Ctrl-C; by force if that takes too long."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=560, help="for all rows together")
    parser.add_argument("--rows", type=int, nargs="+", choices=sorted(ROWS), default=None)
    parser.add_argument("--reps", type=int, default=10)
    args = parser.parse_args()
    options = ["--device", args.device, "--reps", str(args.reps)]
    if args.out is not None:
        options += ["--out", str(args.out)]
    end = time.monotonic() + args.seconds
    rows = args.rows or (FIRST if args.device == "cuda" else sorted(ROWS))
    ends = {row: run_row(row, options, end - time.monotonic()) for row in rows}
    for row, how in ends.items():
        print(f"row {row} {ROWS[row][0]}: {how}")
    return int(any("FAILED" in how for how in ends.values()))


if __name__ == "__main__":
    sys.exit(main())
