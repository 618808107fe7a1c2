"""Row 2: matrix products and memory bandwidth at each share of the SMs.

    python3 benchmarks/gpu/row2_roofline.py

About 2 minutes. Decides the knees of the cost model: at which share bandwidth saturates, and how
compute falls with the share. The whole GPU is measured first and again last, to show drift.
"""

import sys
from typing import Any

from record import Recorder, arguments
from shares import Child, mps, serve

SIZES: dict[str, Any] = {
    "cuda": {"matrix": 8192, "copy_mib": 1024},
    "cpu": {"matrix": 128, "copy_mib": 1},
}


def timed(work: Any, reps: int, device: str) -> list[float]:
    """Seconds of each repetition, after three to warm up."""
    import time

    import torch

    seconds = []
    for index in range(reps + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if index >= 3:
            seconds.append(time.perf_counter() - begun)
    return seconds


def child(device: str) -> None:
    """Measures on request, in a process that has its share."""
    import torch

    def product(matrix: int, reps: int, seed: int) -> list[float]:
        torch.manual_seed(seed)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        left, right = (torch.randn(matrix, matrix, device=device).to(dtype) for _ in range(2))
        out = torch.empty(matrix, matrix, device=device, dtype=dtype)
        return timed(lambda: torch.mm(left, right, out=out), reps, device)

    def copy(copy_mib: int, reps: int) -> list[float]:
        source = torch.ones(copy_mib << 20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return timed(lambda: target.copy_(source), reps, device)

    def read(copy_mib: int, reps: int) -> list[float]:
        source = torch.ones(copy_mib << 18, dtype=torch.float32, device=device)
        return timed(lambda: source.sum(), reps, device)

    serve({"product": product, "copy": copy, "read": read})


def measure(record: Recorder, device: str, percent: int, environment: dict[str, str], reps: int,
            seed: int, again: bool) -> None:  # fmt: skip
    size = SIZES[device]
    with Child("row2_roofline.py", ["--child", device], environment) as at:
        seconds = at.ask(do="product", matrix=size["matrix"], reps=reps, seed=seed)
        flop = 2 * size["matrix"] ** 3
        record.values("matrix product", [flop / s / 1e12 for s in seconds], unit="TFLOP/s",
                      percent=percent, again=again, **size)  # fmt: skip
        nbytes = size["copy_mib"] << 20
        for what, moved in (("copy", 2 * nbytes), ("read", nbytes)):
            seconds = at.ask(do=what, copy_mib=size["copy_mib"], reps=reps)
            record.values(what, [moved / s / 1e9 for s in seconds], unit="GB/s", percent=percent,
                          again=again, **size)  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
        return
    args = arguments(__doc__.splitlines()[0], seconds=240).parse_args()
    with Recorder(2, "roofline", args) as record:
        with mps(record) as shares:
            for index, percent in enumerate([*shares.percents, 100]):
                if record.is_over("share", percent=percent):
                    break
                with record.attempt("share", percent=percent):
                    measure(record, args.device, percent, shares.environment(percent), args.reps,
                            args.seed, again=index == len(shares.percents))  # fmt: skip
        record.shows(knees(record))


def knees(record: Recorder) -> str:
    """The least share with 90 % of the whole GPU's copy bandwidth, and compute at half the SMs."""
    found = {(m["what"], m["parameters"]["percent"]): m["median"]
             for m in record.document["measurements"] if "median" in m}  # fmt: skip
    whole = found.get(("copy", 100))
    if whole is None:
        return "nothing was measured"
    enough = [p for (what, p), value in found.items() if what == "copy" and value >= 0.9 * whole]
    half = found.get(("matrix product", 50))
    compute = (
        f"; half the SMs give {half / found['matrix product', 100]:.0%} of compute" if half else ""
    )
    return f"{min(enough)} % of the SMs copy at 90 % of the whole GPU's bandwidth{compute}"


if __name__ == "__main__":
    main()
