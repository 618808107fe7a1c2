"""Row 4: two models at once under two shares: how much each slows the other.

    python3 benchmarks/gpu/row4_pairs.py

About 4 minutes. Decode beside decode, prefill beside decode, prefill beside prefill, each alone at
the same share first. Decides the interference parameters and when not to share at all.
"""

import time
from pathlib import Path
from typing import Any

from hosts import checkpoints, engine
from record import Recorder, arguments
from shares import Child, mps

SIDES: dict[str, dict[str, dict[str, Any]]] = {
    "cuda": {"decode": {"kind": "decode", "batch": 32, "tokens": 1024},
             "prefill": {"kind": "prefill", "batch": 1, "tokens": 2048}},
    "cpu": {"decode": {"kind": "decode", "batch": 2, "tokens": 16},
            "prefill": {"kind": "prefill", "batch": 1, "tokens": 16}},
}  # fmt: skip
PAIRS = (("decode", "decode"), ("prefill", "decode"), ("prefill", "prefill"))
SPLITS = ((50, 50), (70, 30), (30, 70), (100, 100))


def split_of(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    return int(first), int(second)


def alone(host: Child, side: dict[str, Any], seconds: float) -> list[float]:
    host.ask(do="loop", seconds=min(0.5, seconds), **side)
    return list(host.ask(do="loop", seconds=seconds, **side))


def together(hosts: tuple[Child, Child], sides: tuple[dict[str, Any], dict[str, Any]],
             seconds: float) -> list[list[float]]:  # fmt: skip
    """Both run for longer than is looked at: each one's middle steps ran beside the other."""
    for host, side in zip(hosts, sides, strict=True):
        host.tell(do="loop", seconds=seconds, **side)
    times = [list(host.answer()) for host in hosts]
    return [steps[len(steps) // 4 : -(len(steps) // 4) or None] for steps in times]


def pair(record: Recorder, hosts: tuple[Child, Child], device: str, kinds: tuple[str, str],
         split: tuple[int, int], seconds: float) -> None:  # fmt: skip
    sides = (SIDES[device][kinds[0]], SIDES[device][kinds[1]])
    where = {"first": kinds[0], "second": kinds[1], "split": list(split)}
    single = [alone(host, side, seconds) for host, side in zip(hosts, sides, strict=True)]
    both = together(hosts, sides, 2 * seconds)
    for side in (0, 1):
        for what, steps in (("alone", single[side]), ("together", both[side])):
            record.values(what, [s * 1000 for s in steps], unit="ms", side=side, **where)
        ratio = (
            sorted(both[side])[len(both[side]) // 2] / sorted(single[side])[len(single[side]) // 2]
        )
        record.fact("slowdown", ratio, side=side, **where)


def measure(
    record: Recorder, models: tuple[Path, Path], args: Any, shares: Any, seconds: float
) -> None:
    kv_bytes = 12 << 30 if args.device == "cuda" else 16 << 20
    splits = args.splits if shares.control is not None else ((100, 100),)
    for split in splits:
        if record.is_over("split", split=list(split)):
            return
        with (
            record.attempt("split", split=list(split)),
            engine(models[0], args.device, kv_bytes, shares.environment(split[0])) as first,
            engine(models[1], args.device, kv_bytes, shares.environment(split[1])) as second,
        ):
            for kinds in PAIRS:
                if not record.is_over("pair", kinds=list(kinds), split=list(split)):
                    pair(record, (first, second), args.device, kinds, split, seconds)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], seconds=300)
    parser.add_argument("--models", nargs=2, default=None, help="two of 1.7b, 4b, 8b")
    parser.add_argument("--splits", nargs="+", type=split_of, default=SPLITS, help="e.g. 70/30")
    parser.add_argument("--loop-seconds", type=float, default=3.0)
    args = parser.parse_args()
    models = args.models or (["4b", "4b"] if args.device == "cuda" else ["tiny", "tiny"])
    with Recorder(4, "pairs", args) as record:
        record.fact("models", models)
        with checkpoints(record, sorted(set(models)), args.seed) as made, mps(record) as shares:
            begun = time.monotonic()
            measure(record, (made[models[0]], made[models[1]]), args, shares, args.loop_seconds)
            record.fact("seconds of pairs", time.monotonic() - begun)
        worst = [m["value"] for m in record.document["measurements"] if m["what"] == "slowdown"]
        record.shows(f"{len(worst) // 2} pairs; the worst slowdown of a side is {max(worst):.2f}"
                     if worst else "no pair was measured")  # fmt: skip


if __name__ == "__main__":
    main()
