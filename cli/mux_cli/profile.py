"""`muxserve profile`: what the steps of your models cost on this machine, measured."""

import argparse
import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from mux_core.costmodel.hardware import gpu_type
from mux_core.costmodel.profile_file import dump_profiles
from mux_core.costmodel.profile_set import CPU, MadeOn, ProfileSet
from mux_core.engine import kv_geometry
from mux_core.errors import SpecError, UnsupportedModel
from mux_core.llm import ModelGeometry
from mux_core.units import GIB, Bytes, format_bytes
from mux_core.unitspec import UNIT_BYTES

QUICK_S: Final = 95.0
"""No point is begun later than this after the start: with what is under way, two minutes."""
MEMORY: Final = GIB
LEAST_CONTEXT: Final = 64
COMMIT: Final = "commit/"
"""Key of a journal's line that names the release's commit; a run that goes on adds its own."""
ENGINE_PATHS: Final = {
    "cpu": "torch/cpu/gathered-rows-sdpa",
    "cuda": "torch/cuda/gathered-rows-sdpa",
}

EXAMPLES = """examples:
  muxserve profile ./qwen3-0.6b -o qwen.json             a checkpoint on this machine's processor
  muxserve profile a/ b/ -o both.json                    two models, and how they slow each other
  muxserve profile --config config.json -o p.json        no weights needed: random ones are as fast
  muxserve plan -f manifests/ --profiles qwen.json       plan with it

A run that was killed goes on where it was: give the same command again. docs/profiling.md says how
to read the picture.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve profile`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL",
                        help="folder of a checkpoint")  # fmt: skip
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="config.json",
        help="a model without weights; named after its folder; repeatable",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE",
                        help="the profile to write; a picture goes beside it")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="a coarse profile in less than two minutes")  # fmt: skip
    parser.add_argument("--memory", type=float, default=MEMORY / GIB, metavar="GIB",
                        help="KV memory to measure with (default: %(default)g)")  # fmt: skip
    parser.add_argument(
        "--max-batch",
        type=int,
        metavar="N",
        help="largest decode batch (default: what the memory holds, up to 256)",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, writes the profile and its picture, says what was found."""
    from mux_cli.profile_report import plot_profiles, summary

    subjects = _subjects(args)
    job = _Job(args=args, subjects=subjects)
    profiles = job.run()
    picture = args.output.with_suffix(".png")
    _write(args.output, dump_profiles(profiles))
    job.finish()
    plot_profiles(profiles, picture)
    for line in summary(profiles):
        print(line)
    print(f"profile {args.output}, picture {picture}")
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """One model asked for: a checkpoint, or a config.json that random weights are made for."""

    name: str
    source: Path
    is_config: bool
    geometry: ModelGeometry


def _subjects(args: argparse.Namespace) -> tuple[_Subject, ...]:
    """The models, all readable, each of a name of its own."""
    from mux_runtime.engines.checkpoint_files import read_model_config, read_tensors

    found = []
    for folder in args.models:
        geometry = read_model_config(folder).geometry
        read_tensors(folder)
        found.append(_Subject(name=folder.resolve().name, source=folder, is_config=False,
                              geometry=geometry))  # fmt: skip
    for config in args.config:
        found.append(_Subject(name=config.resolve().parent.name, source=config, is_config=True,
                              geometry=_geometry(config)))  # fmt: skip
    if not found:
        raise SpecError("no model: give folders of checkpoints, or --config config.json")
    names = [subject.name for subject in found]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"model {name}: two folders have this name; rename one, a profile "
                            "tells models by it")  # fmt: skip
    return tuple(found)


def _geometry(config: Path) -> ModelGeometry:
    from mux_core.checkpoint import read_config
    from mux_runtime.engines.checkpoint_files import read_json

    try:
        return read_config(read_json(config)).geometry
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{config}: {error}") from error


class _Job:
    """One run: its journal beside the output, its folder of sockets and made-up weights."""

    def __init__(self, *, args: argparse.Namespace, subjects: tuple[_Subject, ...]) -> None:
        from mux_runtime.profiling.devices import cores, cpu_name, load_beside, require_gpu

        self._args, self._subjects = args, subjects
        output: Path = args.output
        if output.exists():
            raise SpecError(f"{output}: exists already; remove it or choose another -o")
        self._started = time.monotonic()
        self._cores, self._load = cores(), round(load_beside(), 1)
        if args.device == "cuda":
            gpu = require_gpu()
            self._gpu, self._device_name = gpu_type(gpu.name).name, gpu.name
        else:
            self._gpu, self._device_name = CPU, cpu_name(self._cores)
        self._arena = self._checked_memory()
        digest = hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:12]
        self.folder = Path(tempfile.gettempdir()) / f"mux-profile-{digest}"
        self._journal_path = output.with_name(f"{output.name}.journal")

    def run(self) -> ProfileSet:
        """Measures what is missing; a profile of all points there are."""
        from mux_runtime.profiling.assemble import assemble
        from mux_runtime.profiling.bench import Device
        from mux_runtime.profiling.journal import Journal
        from mux_runtime.profiling.points import Subject, make_grid, percents
        from mux_runtime.profiling.run import Job, run, values

        grid = make_grid(
            [Subject(name=s.name, max_model_len=s.geometry.max_model_len,
                     kv_tokens=self._arena // 2 // _token_bytes(s.geometry))
             for s in self._subjects],
            percents(self._args.device, self._cores), quick=self._args.quick,
            unit=self._args.device == "cpu", most_batch=self._args.max_batch,
        )  # fmt: skip
        made = self._made()
        header = {"format": "muxserve-profile-journal", "points": len(grid.points),
                  "models": {s.name: str(s.source.resolve()) for s in self._subjects},
                  "shapes": {s.name: asdict(s.geometry) for s in self._subjects},
                  "made": {**asdict(made), "at": "", "commit": "", "load": 0.0},
                  "memory": self._arena}  # fmt: skip
        journal = Journal.open(self._journal_path, header)
        if journal.found:
            print(f"goes on: {len(journal.found)} measurements are there", file=sys.stderr)
        journal.note(f"{COMMIT}{made.commit}", 0, {})
        if self._load > self._cores / 2:
            print(f"note: {self._load:g} other processes want this machine's {self._cores} cores; "
                  "what they take is measured too", file=sys.stderr)  # fmt: skip
        self._prepare_folder()
        job = Job(models=self._checkpoints(), device=Device(name=self._args.device,
                  cores=self._cores), grid=grid, folder=self.folder, unit_bytes=UNIT_BYTES,
                  arena=self._arena, probe=self._probe(), deadline=self._deadline())  # fmt: skip
        progress = Progress()
        try:
            left = asyncio.run(run(job, journal, progress))
        except KeyboardInterrupt:
            print(f"\nstopped; {self._journal_path} has what was measured, give the same command "
                  "again to go on", file=sys.stderr)  # fmt: skip
            raise
        finally:
            progress.end()
            shutil.rmtree(self.folder, ignore_errors=True)
            journal.close()
        commits = {key for key, _ in journal.found if key.startswith(COMMIT)}
        made = replace(made, commit=", ".join(sorted(key.removeprefix(COMMIT) for key in commits)))
        return assemble(values(journal, grid.points), grid.points, gpu=self._gpu, made=made,
                        geometries={s.name: s.geometry for s in self._subjects},
                        left_out=(*grid.left_out, *left))  # fmt: skip

    def finish(self) -> None:
        """The profile is written: its journal is not needed any more."""
        self._journal_path.unlink(missing_ok=True)

    def _checked_memory(self) -> Bytes:
        given = int(self._args.memory * GIB)
        wanted = max(1, self._args.max_batch or 1) * (LEAST_CONTEXT + 40)
        for subject in self._subjects:
            needed = 2 * wanted * _token_bytes(subject.geometry)
            if needed > given:
                raise SpecError(
                    f"model {subject.name}: decode batch {self._args.max_batch or 1} of "
                    f"{LEAST_CONTEXT} tokens needs {format_bytes(needed)} of KV memory, --memory "
                    f"gives {format_bytes(given)}; raise it or lower --max-batch"
                )
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self._args.device == "cpu" and given > available:
            raise SpecError(f"--memory {self._args.memory:g} GiB: this machine has "
                            f"{format_bytes(available)} free; lower it")  # fmt: skip
        return Bytes(given // UNIT_BYTES * UNIT_BYTES)

    def _made(self) -> MadeOn:
        return MadeOn(
            device=self._device_name, cores=self._cores, path=ENGINE_PATHS[self._args.device],
            release=release(), commit=commit(), quick=self._args.quick,
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), load=self._load,
        )  # fmt: skip

    def _deadline(self) -> float | None:
        return self._started + QUICK_S if self._args.quick else None

    def _prepare_folder(self) -> None:
        """Ours alone by the journal's lock; what a killed run left goes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True)

    def _checkpoints(self) -> dict[str, Path]:
        from mux_runtime.profiling.random_weights import write_checkpoint

        return {
            s.name: write_checkpoint(s.source, self.folder / f"model-{index}")
            if s.is_config else s.source.resolve()
            for index, s in enumerate(self._subjects)
        }  # fmt: skip

    def _probe(self) -> Path:
        """The small model of the unit whose own cost is timed."""
        from mux_cli.tiny_models import TinyModel, write

        os.environ.setdefault("TQDM_DISABLE", "1")
        return write(TinyModel(family="qwen3", layers=2, hidden=64, head_dim=32, intermediate=128,
                               vocab=1024, seed=9), self.folder / "probe")  # fmt: skip


def _token_bytes(geometry: ModelGeometry) -> int:
    """KV of one token in the pool, the part-filled end of its units included."""
    layout = kv_geometry(layers=geometry.layers, kv_heads=geometry.kv_heads,
                         head_dim=geometry.head_dim, dtype=geometry.dtype,
                         unit_bytes=UNIT_BYTES)  # fmt: skip
    return -(-layout.row_units * UNIT_BYTES // layout.block_tokens)


class Progress:
    """One line on standard error: rewritten on a terminal, else once in `EVERY_S` seconds."""

    EVERY_S: Final = 5.0

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._said = 0.0

    def __call__(self, what: str, part: float, left_s: float) -> None:
        now = time.monotonic()
        if not self._terminal and now - self._said < self.EVERY_S:
            return
        self._said = now
        left = "" if left_s == float("inf") else f", {left_s:.0f} s left"
        end = "\x1b[K\r" if self._terminal else "\n"
        print(f"{part:4.0%}{left}: {what}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal:
            print(file=sys.stderr)


def release() -> str:
    """The version of this installation."""
    try:
        return metadata.version("muxserve-operator")
    except metadata.PackageNotFoundError:
        return "unknown"


def commit() -> str:
    """The commit of the checkout this runs from; `unknown` where it is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "unknown"
    said = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    return said.stdout.strip() or "unknown"


def _write(path: Path, text: str) -> None:
    """Whole or not at all; never over a file that came to be meanwhile."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.link(part, path)
    except FileExistsError:
        raise SpecError(f"{path}: came to be while this ran; the measurements are kept, remove it "
                        "and give the command again") from None  # fmt: skip
    finally:
        part.unlink(missing_ok=True)
