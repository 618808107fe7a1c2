"""Row 3: the torch engine's steps at each share: prefill by length, decode by batch and context.

    python3 benchmarks/gpu/row3_engine.py --models 4b        (also 1.7b, 8b; several at once)

About 6 minutes per model. These are the planner's tables for this GPU and this engine path
(gathered rows, torch SDPA, no graphs); they count for no other.
"""

from pathlib import Path
from typing import Any

from hosts import checkpoints, engine
from record import Recorder, arguments
from shares import Child, mps

ENGINE_PATH = "torch, gathered rows, SDPA, eager"
POINTS: dict[str, Any] = {
    "cuda": {"prefill": (128, 512, 2048, 4096, 8192),
             "decode": [(b, c) for c in (256, 1024, 4096) for b in (1, 4, 16, 64, 128)]},
    "cpu": {"prefill": (8, 32), "decode": [(1, 16), (2, 40)]},
}  # fmt: skip


def points(record: Recorder, host: Child, device: str, reps: int, **where: Any) -> None:
    """Every point of one host; stops when the time is used up."""
    for tokens in POINTS[device]["prefill"]:
        if record.is_over("prefill", tokens=tokens, **where):
            return
        with record.attempt("prefill", tokens=tokens, **where):
            seconds = host.ask(do="prefill", tokens=tokens, reps=reps)
            record.values("prefill", [s * 1000 for s in seconds], unit="ms", tokens=tokens, **where)
    for batch, context in POINTS[device]["decode"]:
        if record.is_over("decode", batch=batch, context=context, **where):
            return
        if not host.ask(do="fits", batch=batch, context=context):
            record.failure("decode", "left out: its KV does not fit", batch=batch, context=context,
                           **where)  # fmt: skip
            continue
        with record.attempt("decode", batch=batch, context=context, **where):
            seconds = host.ask(do="decode", batch=batch, context=context, reps=reps)
            record.values("decode", [s * 1000 for s in seconds], unit="ms", batch=batch,
                          context=context, **where)  # fmt: skip


def share(record: Recorder, model: Path, device: str, kv_bytes: int, environment: dict[str, str],
          reps: int, percent: int) -> None:  # fmt: skip
    where = {"model": model.name, "percent": percent}
    with engine(model, device, kv_bytes, environment) as host:
        record.fact("host", host.ask(do="stats"), **where)
        points(record, host, device, reps, **where)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], seconds=480)
    parser.add_argument("--models", nargs="+", default=None, help="1.7b, 4b, 8b")
    parser.add_argument("--kv-gib", type=float, default=24.0)
    args = parser.parse_args()
    models = args.models or (["4b"] if args.device == "cuda" else ["tiny"])
    kv_bytes = int(args.kv_gib * (1 << 30)) if args.device == "cuda" else 16 << 20
    with Recorder(3, "engine-" + "-".join(models), args) as record:
        record.fact("engine path", ENGINE_PATH)
        with checkpoints(record, models, args.seed) as made, mps(record) as shares:
            for name in models:
                for percent in shares.percents:
                    if record.is_over("share", model=name, percent=percent):
                        break
                    with record.attempt("share", model=name, percent=percent):
                        share(record, made[name], args.device, kv_bytes,
                              shares.environment(percent), args.reps, percent)  # fmt: skip
        record.shows(summary(record))


def summary(record: Recorder) -> str:
    done = [m for m in record.document["measurements"] if "median" in m]
    shares = {(m["parameters"]["model"], m["parameters"]["percent"]) for m in done}
    return (
        f"{len(done)} points of {len(shares)} (model, share) pairs of the engine path {ENGINE_PATH}"
    )


if __name__ == "__main__":
    main()
