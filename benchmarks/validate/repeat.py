"""How long a quick profile of one tiny model takes, and how well two of them agree.

    python benchmarks/validate/repeat.py

Prints the seconds of one that is measured in one go. Then two are measured side by side, three
passes each in turn, so that both see the same machine where its speed moves: the difference of
their decode steps, median and largest, and how many are within 10 %. The one in one go is held
against the first of the two as well. Run it on a quiet machine; the load is printed.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mux_cli.profile_notes import is_whole
from mux_cli.tiny_models import DEMO, write
from mux_core.costmodel.profile_file import load_profiles
from mux_runtime.profiling.points import PASSES

BAR = 0.10
MODEL = "tiny-llama"
Curve = dict[tuple[int, int, int], float]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mux-repeat-") as folder:
        model = write(DEMO[MODEL], Path(folder) / MODEL)
        whole, first, second = (Path(folder) / f"{name}.json" for name in ("whole", "1", "2"))
        print(f"in one go: {profile(model, whole):.0f} s, {about(whole)}", flush=True)
        seconds = [profile(model, output, "--passes", "1")
                   for _ in range(PASSES) for output in (first, second)]  # fmt: skip
        print(f"side by side: {sum(seconds[::2]):.0f} and {sum(seconds[1::2]):.0f} s")
        compare("second against first, side by side", curve(second), curve(first))
        compare("first of these against the one in one go", curve(first), curve(whole))


def profile(model: Path, output: Path, *arguments: str) -> float:
    """Measures a quick profile, or another pass unless it is whole; the seconds that took."""
    if is_whole(output):
        return 0.0
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "mux_cli.main", "profile", str(model), "--quick",
                    "-o", str(output), *arguments], check=True, capture_output=True)  # fmt: skip
    return time.monotonic() - began


def about(output: Path) -> str:
    found = load_profiles(output.read_text(), subject=str(output))
    return f"load {found.made.load:g}, left out: {'; '.join(found.left_out)}"


def curve(output: Path) -> Curve:
    """The decode steps of a profile, in seconds by (percent, batch, context)."""
    (measured,) = load_profiles(output.read_text(), subject=str(output)).models
    return {(row.percent, row.batch, row.tokens): row.decode_s
            for cell in measured.table.cells.values() for row in cell if row.decode_s}  # fmt: skip


def compare(what: str, one: Curve, other: Curve) -> None:
    off = [abs(one[at] / other[at] - 1) for at in one.keys() & other.keys()]
    within = sum(error <= BAR for error in off)
    print(f"{what}: median {median(off):.1%}, largest {max(off):.1%}, {within} of {len(off)} "
          f"decode steps within {BAR:.0%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
