"""How long a quick profile of one tiny model takes, and how well a second one agrees with it.

    python benchmarks/validate/repeat.py [--times 2]

Prints the seconds of each, and the difference of decode steps from the first profile: median,
largest, and how many points are within 10 %. Run it on a quiet machine; the load is printed.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mux_cli.tiny_models import DEMO, write
from mux_core.costmodel.profile_file import load_profiles

BAR = 0.10
MODEL = "tiny-llama"
Curve = dict[tuple[int, int, int], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=2)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory(prefix="mux-repeat-") as folder:
        model = write(DEMO[MODEL], Path(folder) / MODEL)
        curves = [profile(model, Path(folder) / f"{number}.json") for number in range(times)]
    for number, curve in enumerate(curves[1:], 2):
        off = [abs(curve[at] / curves[0][at] - 1) for at in curve.keys() & curves[0].keys()]
        within = sum(error <= BAR for error in off)
        print(f"profile {number} against the first: median {median(off):.1%}, largest "
              f"{max(off):.1%}, {within} of {len(off)} decode steps within {BAR:.0%}")  # fmt: skip


def profile(model: Path, output: Path) -> Curve:
    """The decode steps of one quick profile."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "mux_cli.main", "profile", str(model), "--quick",
                    "-o", str(output)], check=True, capture_output=True)  # fmt: skip
    found = load_profiles(output.read_text(), subject=str(output))
    print(f"{time.monotonic() - began:.0f} s, load {found.made.load:g}, left out: "
          f"{'; '.join(found.left_out)}", flush=True)  # fmt: skip
    (measured,) = found.models
    return {(row.percent, row.batch, row.tokens): row.decode_s
            for cell in measured.table.cells.values() for row in cell if row.decode_s}  # fmt: skip


if __name__ == "__main__":
    main()
