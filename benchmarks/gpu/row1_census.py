"""Row 1: how many SMs a client sees and runs on, at 10 to 100 %, and with a wrong pipe directory.

    python3 benchmarks/gpu/row1_census.py

About 1 minute. Decides how a share is verified: whether the driver's count inside a client follows
CUDA_MPS_ACTIVE_THREAD_PERCENTAGE, how it is rounded, and whether blocks stay on so many SMs.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from record import Recorder, arguments, run
from shares import mps

from mux_runtime.sm.shares import expected_sms


def build(record: Recorder, folder: Path) -> Path | None:
    """The census program for this GPU's own architecture; None where it cannot be built."""
    program = folder / "census"
    source = Path(__file__).with_name("census.cu")
    code, text = run(["nvcc", "-arch=sm_90", "-O2", "-o", str(program), str(source)],
                     timeout_s=120)  # fmt: skip
    if code:
        record.failure("nvcc -arch=sm_90 census.cu", text[-2000:])
        return None
    return program


def by_driver(record: Recorder, environment: dict[str, str], **parameters: object) -> int:
    """The driver's count in a process of its own; 0 when it fails."""
    code, text = run([sys.executable, "-m", "mux_runtime.sm.driver"],
                     env={**os.environ, **environment})  # fmt: skip
    if code:
        record.failure("SMs by cuDeviceGetAttribute", text, **parameters)
        return 0
    sms = int(json.loads(text)["sms"])
    record.fact("SMs by cuDeviceGetAttribute", sms, **parameters)
    return sms


def by_blocks(record: Recorder, program: Path, environment: dict[str, str], reps: int,
              **parameters: object) -> None:  # fmt: skip
    """What the blocks of a spinning kernel ran on."""
    code, text = run([str(program), str(reps)], env={**os.environ, **environment})
    if code:
        record.failure("SMs by %smid", text, **parameters)
        return
    lines = [json.loads(line) for line in text.splitlines()]
    record.values("SMs by %smid", [line["smids"] for line in lines], unit="SMs",
                  attribute=lines[0]["attribute"], **parameters)  # fmt: skip


def main() -> None:
    args = arguments(__doc__.splitlines()[0], seconds=120).parse_args()
    with Recorder(1, "census", args) as record, tempfile.TemporaryDirectory() as folder:
        has_nvcc = args.device == "cuda" and shutil.which("nvcc") is not None
        program = build(record, Path(folder)) if has_nvcc else None
        whole = by_driver(record, {}, mps=False)
        agree = []
        with mps(record) as shares:
            places = [(percent, shares.environment(percent), True)
                      for percent in shares.percents if shares.control is not None]  # fmt: skip
            for percent, environment, inside in [*places, (30, shares.outside, False)]:
                if record.is_over("census", percent=percent, inside=inside):
                    break
                seen = by_driver(record, environment, percent=percent, inside=inside)
                low, high = expected_sms(percent, whole)
                if inside and seen:
                    agree.append(low <= seen <= high)
                if program is not None:
                    by_blocks(record, program, environment, args.reps, percent=percent,
                              inside=inside)  # fmt: skip
        record.shows(f"of {whole} SMs, {sum(agree)} of {len(agree)} shares were seen as planned "
                     "(rounded by less than a pair)")  # fmt: skip


if __name__ == "__main__":
    main()
