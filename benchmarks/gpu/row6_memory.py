"""Row 6: GPU memory of one engine host, step by step, without MPS and under it.

    python3 benchmarks/gpu/row6_memory.py

About 2 minutes. Decides the planner's constant per host: bare context, torch, first product, first
attention, 35 graphs; then an engine host of a tiny model, whose weights and KV are known.
"""

from pathlib import Path

from hosts import checkpoints, engine
from record import Recorder, arguments, run
from shares import Child, mps

KV_BYTES = 64 << 20
STEPS = ("context", "torch", "matmul", "attention", "graphs")


class Gauge:
    """Memory in use, in MiB: of the whole GPU, or of one process where there is none."""

    def __init__(self, device: str) -> None:
        self._device = device

    def read(self, child: Child) -> float:
        if self._device == "cuda":
            text = run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"])[
                1
            ]
            return float(text.splitlines()[0])
        lines = Path(f"/proc/{child.process.pid}/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def one_process(
    record: Recorder, gauge: Gauge, device: str, environment: dict[str, str]
) -> list[float]:
    """MiB that each step added, in order."""
    added = []
    with Child("memory_child.py", [device], environment) as child:
        before = gauge.read(child)
        for step in STEPS:
            child.ask(do=step, **({"count": 35} if step == "graphs" else {}))
            now = gauge.read(child)
            added.append(now - before)
            before = now
    return added


def engine_host(record: Recorder, gauge: Gauge, model: Path, device: str,
                environment: dict[str, str], **where: object) -> None:  # fmt: skip
    """A tiny model's host: all but its weights and KV is what a host costs."""
    with Child("memory_child.py", [device], environment) as other:
        before = gauge.read(other) if device == "cuda" else 0.0
        with engine(model, device, KV_BYTES, environment) as host:
            host.ask(do="prefill", tokens=64, reps=1)
            host.ask(do="decode", batch=4, context=64, reps=3)
            stats = host.ask(do="stats")
            used = gauge.read(host) - before
    weights = (model / "model.safetensors").stat().st_size
    known = (weights + KV_BYTES) / (1 << 20)
    record.values("engine host beside weights and KV", [used - known], unit="MiB", **where, **stats)


def main() -> None:
    args = arguments(__doc__.splitlines()[0], seconds=150).parse_args()
    model = "1.7b" if args.device == "cuda" else "tiny"
    with Recorder(6, "memory", args) as record, checkpoints(record, [model], args.seed) as made:
        gauge = Gauge(args.device)
        with mps(record) as shares:
            for place in ("without MPS", "under MPS") if shares.control else ("without MPS",):
                environment = shares.environment(50) if place == "under MPS" else shares.outside
                rounds = []
                for _ in range(min(args.reps, 3)):
                    if record.is_over("process", place=place):
                        break
                    with record.attempt("process", place=place):
                        rounds.append(one_process(record, gauge, args.device, environment))
                for index, step in enumerate(STEPS if rounds else ()):
                    record.values(step, [r[index] for r in rounds], unit="MiB", place=place)
                with record.attempt("engine host", place=place):
                    engine_host(record, gauge, made[model], args.device, environment, place=place)
        record.shows(summary(record))


def summary(record: Recorder) -> str:
    found = [(m["parameters"]["place"], m["median"]) for m in record.document["measurements"]
             if m["what"].startswith("engine host") and "median" in m]  # fmt: skip
    return "; ".join(f"a host {place} takes {mib:.0f} MiB beside weights and KV"
                     for place, mib in found) or "no host was measured"  # fmt: skip


if __name__ == "__main__":
    main()
