"""What `muxserve simulate` and `muxserve compare` are told about traffic and time."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from mux_cli.workload_file import Workload
from mux_core.errors import SpecError
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.lengths import LengthShape
from mux_core.simulator.traces import parse_trace
from mux_core.simulator.workloads import (
    STEADY,
    RateCurve,
    Stream,
    day_curve,
    popularity_pairs,
    streams_of,
    swapped,
)

TAIL_S = 120.0
"""Nearly all that arrive at the window's end are done by then; what is not missed its SLO."""
SEEDS = 5
MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests to come: a trace, or streams drawn anew for every seed. `moves`: rates change."""

    streams: tuple[Stream, ...] = ()
    trace: tuple[Arrival, ...] = ()
    moves: bool = False

    @property
    def seeded(self) -> bool:
        return not self.trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Seconds: before measuring, measured, and after it under the same load."""

    warmup: float
    seconds: float
    tail: float

    @property
    def until(self) -> float:
        return self.warmup + self.seconds + self.tail


def traffic_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say what arrives, and when it is measured."""
    parser.add_argument("--workload", type=Path, required=True, metavar="FILE",
                        help="workload file, JSON or YAML (see muxserve workload)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=600.0, metavar="S",
                        help="measured window, after the warm-up (600)")  # fmt: skip
    parser.add_argument("--warmup", type=float, default=60.0, metavar="S",
                        help="seconds before the window (60)")  # fmt: skip
    parser.add_argument("--tail", type=float, default=TAIL_S, metavar="S",
                        help="seconds the load goes on after the window, so that its last "
                        "requests can end (120)")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N",
                        help="runs, with seeds 1 to N (5); a trace is run once")  # fmt: skip
    parser.add_argument("--load", type=float, default=1.0, metavar="FACTOR",
                        help="factor on every rate that arrives; the plan keeps the workload's "
                        "rates (1.0)")  # fmt: skip
    parser.add_argument("--lengths", choices=[str(shape) for shape in LengthShape],
                        default="sharegpt",
                        help="how token lengths vary around their means")  # fmt: skip
    parser.add_argument("--curve", metavar="CURVE",
                        help="rates over time: day:LOW, a sinusoid from LOW to 1 per --day, or "
                        "factors from given seconds on, as 0=1,300=2.5")  # fmt: skip
    parser.add_argument("--day", type=float, default=86_400.0, metavar="S",
                        help="seconds of a day of --curve day (86400)")  # fmt: skip
    parser.add_argument("--swap-at", type=float, metavar="S",
                        help="from then on hot and cold LLMs of one size trade places")  # fmt: skip
    parser.add_argument("--trace", type=Path, metavar="FILE",
                        help="requests from a file in place of drawn ones: CSV or JSONL with "
                        "time,model,prompt_tokens,output_tokens")  # fmt: skip
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="runs at once (one per core); changes no result")  # fmt: skip


def read_window(args: argparse.Namespace) -> Window:
    """Raises SpecError for a window without length and for negative times."""
    _above("--seconds", args.seconds, 0, "give the length of the measured window, e.g. 600")
    for name in ("warmup", "tail"):
        value = getattr(args, name)
        if not (value >= 0 and isfinite(value)):
            raise SpecError(f"--{name} {value:g}: seconds, at least 0")
    if not 1 <= args.seeds <= MOST_SEEDS:
        raise SpecError(f"--seeds {args.seeds}: 1 to {MOST_SEEDS}")
    if args.jobs is not None and args.jobs < 1:
        raise SpecError(f"--jobs {args.jobs}: at least 1")
    return Window(warmup=args.warmup, seconds=args.seconds, tail=args.tail)


def read_traffic(args: argparse.Namespace, workload: Workload, window: Window) -> Traffic:
    """What arrives. Raises SpecError for a curve, a swap or a trace that makes no sense."""
    _above("--load", args.load, 0, "a factor on the rates, e.g. 1.25")
    _above("--day", args.day, 0, "the length of a day, e.g. 86400")
    if args.trace is not None:
        return Traffic(trace=_read_trace(args, workload, window), moves=True)
    curve = STEADY if args.curve is None else _read_curve(args.curve, args.day, window)
    streams: Sequence[Stream] = streams_of(
        workload.llms, load=args.load, shape=LengthShape(args.lengths), curve=curve
    )
    if args.swap_at is not None:
        _above("--swap-at", args.swap_at, 0, "seconds from the start of the run")
        pairs = popularity_pairs(workload.llms)
        if not pairs:
            raise SpecError("--swap-at: no two LLMs of the workload cost the same; none can trade "
                            "places")  # fmt: skip
        streams = swapped(streams, pairs, args.swap_at)
    return Traffic(streams=tuple(streams), moves=curve is not STEADY or args.swap_at is not None)


def _above(flag: str, value: float, limit: float, fix: str) -> None:
    if not (value > limit and isfinite(value)):
        raise SpecError(f"{flag} {value:g}: above {limit:g}; {fix}")


def _read_curve(text: str, day: float, window: Window) -> RateCurve:
    kind, _, low = text.partition(":")
    try:
        if kind == "day":
            share = float(low)
            if not 0 <= share <= 1:
                raise SpecError(f"--curve {text}: the lowest rate is a part of the highest, 0 to 1")
            return day_curve(share, day, days=1 + int(window.until // day))
        pairs = [word.split("=") for word in text.split(",")]
        starts, factors = zip(*((float(at), float(factor)) for at, factor in pairs), strict=True)
    except ValueError as error:
        raise SpecError(f"--curve {text}: write day:LOW, e.g. day:0.3, or START=FACTOR pairs, e.g. "
                        "0=1,300=2.5") from error  # fmt: skip
    return RateCurve(tuple(starts), tuple(factors))


def _read_trace(
    args: argparse.Namespace, workload: Workload, window: Window
) -> tuple[Arrival, ...]:
    if args.curve is not None or args.swap_at is not None or args.load != 1.0:
        raise SpecError("--trace: holds the requests as they are; --load, --curve and --swap-at "
                        "shape drawn ones, leave them out")  # fmt: skip
    try:
        text = args.trace.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--trace {args.trace}: cannot be read ({error}); give a CSV or JSONL file"
                        ) from error  # fmt: skip
    found = parse_trace(text, models={llm.name for llm in workload.llms}, name=str(args.trace))
    begin, end = window.warmup, window.warmup + window.seconds
    if not any(begin <= arrival.at < end for arrival in found):
        raise SpecError(f"--trace {args.trace}: requests from {found[0].at:g} to {found[-1].at:g} "
                        f"s, none inside the window from {begin:g} to {end:g} s; change --warmup "
                        "or --seconds")  # fmt: skip
    return found
