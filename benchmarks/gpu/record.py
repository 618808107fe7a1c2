"""How a GPU measurement is kept: one JSON file per script, written again after every result.

A file says on what and by which command it was made; a script that is cut leaves what it had, with
`complete` false. A failure is a result too. With `--device cpu` a script only shows that it runs:
`counts` is false and the file goes to a temporary folder unless `--out` names one.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import runpy
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
_SOURCES = [str(ROOT / "core"), str(ROOT / "runtime")]
sys.path[:0] = _SOURCES
os.environ["PYTHONPATH"] = os.pathsep.join([*_SOURCES, os.environ.get("PYTHONPATH", "")])

Json = dict[str, Any]


def arguments(description: str, *, seconds: float) -> argparse.ArgumentParser:
    """What all scripts take; `seconds` is when this one stops beginning new measurements."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda",
                        help="cpu: only show that the script runs to its end")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=seconds,
                        help=f"begin nothing new after so long ({seconds:.0f})")  # fmt: skip
    parser.add_argument("--reps", type=int, default=10, help="repetitions after warming up")
    parser.add_argument("--percents", type=int, nargs="+", help="shares (default: all tens)")
    return parser


class Recorder:
    """The file of one script's results. Use as a context: leaving it completes the file."""

    def __init__(self, row: int, name: str, args: argparse.Namespace) -> None:
        self.begun = time.monotonic()
        self.limit_s = float(args.seconds)
        self.percents: list[int] | None = args.percents
        gpu = _gpu() if args.device == "cuda" else {"name": "cpu"}
        self.document: Json = {
            "row": row, "name": name, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "device": args.device, "counts": args.device == "cuda", "gpu": gpu,
            **_software(), **_commit(), "command": shlex.join(["python3", *sys.argv]),
            "seed": args.seed, "shows": "", "complete": False, "seconds": 0.0, "measurements": [],
        }  # fmt: skip
        folder = args.out or (RESULTS if args.device == "cuda" else Path(tempfile.mkdtemp()))
        folder.mkdir(parents=True, exist_ok=True)
        short = "".join(c if c.isalnum() else "-" for c in gpu["name"].lower())
        day = self.document["date"][:10]
        self.path = folder / f"{day}-{short}-row{row}-{name}.json"

    @property
    def seconds_left(self) -> float:
        return self.limit_s - (time.monotonic() - self.begun)

    def values(
        self, what: str, values: Sequence[float], *, unit: str, **parameters: object
    ) -> None:
        """All repetitions of one measurement, in order."""
        middle = statistics.median(values)
        self._add({"what": what, "parameters": parameters, "unit": unit, "median": middle,
                   "least": min(values), "most": max(values), "values": list(values)})  # fmt: skip
        spread = f"[{min(values):.6g} .. {max(values):.6g}]"
        self._say(f"{what} {_words(parameters)}: {middle:.6g} {unit} {spread}")

    def fact(self, what: str, value: object, **parameters: object) -> None:
        """Something that is read rather than timed."""
        self._add({"what": what, "parameters": parameters, "value": value})
        self._say(f"{what} {_words(parameters)}: {_short(value)}")

    def failure(self, what: str, why: object, **parameters: object) -> None:
        self._add({"what": what, "parameters": parameters, "failed": str(why)})
        self._say(f"{what} {_words(parameters)}: FAILED {_short(why)}")

    @contextlib.contextmanager
    def attempt(self, what: str, **parameters: object) -> Iterator[None]:
        """Keeps an error of the block as a failure and goes on."""
        try:
            yield
        except Exception as error:
            self.failure(what, f"{type(error).__name__}: {error}", **parameters)

    def is_over(self, what: str, **parameters: object) -> bool:
        """Whether the time is used up; then `what` is written down as left out."""
        if self.seconds_left > 0:
            return False
        self.failure(what, f"left out: the {self.limit_s:.0f} s are used up", **parameters)
        return True

    def shows(self, sentence: str) -> None:
        """What the file shows, for a reader who opens nothing else."""
        self.document["shows"] = sentence
        self._say(sentence)

    def __enter__(self) -> "Recorder":
        self.write()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.document["complete"] = kind is None
        self.write()
        print(f"written: {self.path}", flush=True)

    def _add(self, measurement: Json) -> None:
        self.document["measurements"].append(measurement)
        self.write()

    def write(self) -> None:
        """The whole file at once: a reader or a kill never meets half of it."""
        self.document["seconds"] = round(time.monotonic() - self.begun, 3)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.document, indent=1) + "\n")
        fresh.replace(self.path)

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begun:6.1f} s] {text}", flush=True)


def run(argv: Sequence[str], *, timeout_s: float = 60.0, **options: Any) -> tuple[int, str]:
    """Exit code and all output of a command; -1 when it is missing or takes too long."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=timeout_s, check=False, **options)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, done.stdout


def _gpu() -> Json:
    fields = "name,uuid,driver_version,memory.total,compute_mode,mig.mode.current,clocks.max.sm"
    code, text = run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    if code:
        return {"name": "none", "error": text.strip()}
    values = (value.strip() for value in text.strip().splitlines()[0].split(","))
    return dict(zip(fields.split(","), values, strict=False))


def _software() -> Json:
    return {**_torch(), "python": platform.python_version(), "kernel": platform.release(),
            "cpus": len(os.sched_getaffinity(0))}  # fmt: skip


def _torch() -> Json:
    """torch's versions, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {"torch": None, "cuda": None}
    names = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return {"torch": str(names["__version__"]), "cuda": names["cuda"]}


def _commit() -> Json:
    code, commit = run(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if code:
        return {"commit": os.environ.get("COMMIT", "unknown: not a git checkout, set COMMIT")}
    _, changed = run(["git", "-C", str(ROOT), "status", "--porcelain"])
    return {"commit": commit.strip(), "changed_files": len(changed.splitlines())}


def _words(parameters: Json) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())


def _short(value: object) -> str:
    text = " | ".join(str(value).strip().splitlines())
    return text if len(text) <= 160 else text[:157] + "..."
