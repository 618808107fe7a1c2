"""One run of `muxserve profile`: its journal beside the output, its folder of sockets, weights."""

import argparse
import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mux_cli.profile_notes import RunNotes, is_whole, journal_of
from mux_cli.profile_origin import commit
from mux_cli.profile_progress import Progress
from mux_cli.profile_subjects import Subject
from mux_cli.profile_unit import models_to_serve
from mux_core.costmodel.hardware import gpu_type
from mux_core.costmodel.profile_file import SET_VERSION, dump_profiles
from mux_core.costmodel.profile_set import CPU, ENGINE_PATHS, MadeOn, ProfileSet
from mux_core.errors import PeerError, SpecError
from mux_core.units import GIB, Bytes, format_bytes
from mux_core.unitspec import UNIT_BYTES
from mux_operator.release import release
from mux_runtime.profiling import points
from mux_runtime.profiling.assemble import assemble
from mux_runtime.profiling.bench import Device
from mux_runtime.profiling.devices import cores, cpu_name, load_beside, require_gpu
from mux_runtime.profiling.journal import Journal
from mux_runtime.profiling.random_weights import write_checkpoint
from mux_runtime.profiling.run import Job, run, unfinished, values

QUICK_S: Final = 105.0
"""No point is begun later than this after the start: with what is under way, two minutes."""
LEAST_CONTEXT: Final = 64
MOST_GIB: Final = 10_000


class ProfileJob:
    """Made when all that was asked for can be measured. Raises SpecError where it cannot."""

    def __init__(self, args: argparse.Namespace, subjects: Sequence[Subject]) -> None:
        self._args, self._subjects = args, subjects
        self._output: Path = args.output
        self._journal_path = journal_of(self._output)
        if is_whole(self._output):
            raise _in_the_way(self._output)
        if args.passes is not None and args.passes < 1:
            raise SpecError(f"--passes {args.passes}: at least 1")
        self._started = time.monotonic()
        self._cores, self._load = cores(), round(load_beside(), 1)
        self._gpu, self._device_name = CPU, cpu_name(self._cores)
        if args.device == "cuda":
            gpu = require_gpu()
            self._gpu, self._device_name = gpu_type(gpu.name).name, gpu.name
        self._arena = self._checked_memory()
        digest = hashlib.sha256(str(self._output.resolve()).encode()).hexdigest()[:12]
        self._folder = Path(tempfile.gettempdir()) / f"mux-profile-{digest}"

    def run(self) -> ProfileSet:
        """Measures what is missing, writes the profile of all there is, and gives it."""
        grid, made = self._grid(), self._made()
        with closing(Journal.open(self._journal_path, self._header(grid, made))) as journal:
            notes = RunNotes(journal)
            over = self._output.exists()
            if over and not notes.wrote_this(self._output):
                raise _in_the_way(self._output)
            own = {point.key for point in grid.points}
            kept = sum(key in own for key, _ in journal.found)
            if kept:
                print(f"goes on: {kept} measurements are there", file=sys.stderr)
            notes.begin(made.commit)
            self._say_load()
            left = self._measure(grid, journal)
            made = replace(made, commit=notes.commits)
            profiles = self._whole(assemble(
                values(journal, grid.points), grid.points, gpu=self._gpu, made=made,
                left_out=(*grid.left_out, *left),
                geometries={s.name: s.geometry for s in self._subjects}))  # fmt: skip
            text = dump_profiles(profiles)
            _write(self._output, text, over=over)
            if self._args.passes is not None and unfinished(grid, journal):
                notes.wrote(text)
            else:
                self._journal_path.unlink()
        return profiles

    def _measure(self, grid: points.Grid, journal: Journal) -> tuple[str, ...]:
        """Runs the hosts; what was left out."""
        # Ours alone by the journal's lock; what a killed run left goes.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True)
        progress = Progress()
        try:
            job = Job(
                models=self._checkpoints(), grid=grid, folder=self._folder,
                device=Device(name=self._args.device, cores=self._cores), unit_bytes=UNIT_BYTES,
                arena=self._arena,
                to_serve=models_to_serve(self._subjects, self._folder),
                deadline=self._started + QUICK_S if self._args.quick else None,
                passes=self._args.passes,
            )  # fmt: skip
            return asyncio.run(run(job, journal, progress))
        except KeyboardInterrupt:
            print(f"\nstopped; {self._journal_path} has what was measured, give the same command "
                  "again to go on", file=sys.stderr)  # fmt: skip
            raise
        finally:
            progress.end()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _whole(self, profiles: ProfileSet) -> ProfileSet:
        """The profile, if every model has what readers of it need."""
        for model in profiles.models:
            rows = [row for cell in model.table.cells.values() for row in cell
                    if row.percent == 100]  # fmt: skip
            if not any(r.prefill_s for r in rows) or not any(r.decode_s for r in rows):
                raise PeerError(f"model {model.name}: time ran out before its steps were measured "
                                f"at 100 %; {self._journal_path} has the rest, give the same "
                                "command again to go on")  # fmt: skip
        return profiles

    def _grid(self) -> points.Grid:
        subjects = [
            points.Subject(name=s.name, max_model_len=s.geometry.max_model_len,
                           kv_tokens=self._arena // 2 // s.token_bytes)
            for s in self._subjects
        ]  # fmt: skip
        shares = points.percents(self._args.device, self._cores)
        return points.make_grid(subjects, shares, quick=self._args.quick,
                                unit=self._args.device == "cpu",
                                most_batch=self._args.max_batch)  # fmt: skip

    def _header(self, grid: points.Grid, made: MadeOn) -> Mapping[str, Any]:
        """What must be the same for a run to go on with another's measurements."""
        return {
            "format": "muxserve-profile-journal", "version": SET_VERSION,
            "points": len(grid.points),
            "models": {s.name: str(s.source.resolve()) for s in self._subjects},
            "shapes": {s.name: asdict(s.geometry) for s in self._subjects},
            "made": {**asdict(made), "at": "", "commit": "", "load": 0.0},
            "memory": self._arena,
        }  # fmt: skip

    def _made(self) -> MadeOn:
        return MadeOn(
            device=self._device_name, cores=self._cores, path=ENGINE_PATHS[self._args.device],
            release=release(), commit=commit(), quick=self._args.quick,
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), load=self._load,
        )  # fmt: skip

    def _say_load(self) -> None:
        if self._load > self._cores / 2:
            print(f"note: {self._load:g} other processes want this machine's {self._cores} cores; "
                  "what they take is measured too", file=sys.stderr)  # fmt: skip

    def _checked_memory(self) -> Bytes:
        if self._args.max_batch is not None and self._args.max_batch < 1:
            raise SpecError(f"--max-batch {self._args.max_batch}: at least 1")
        if not 0 < self._args.memory < MOST_GIB:
            raise SpecError(f"--memory {self._args.memory:g}: GiB above 0, below {MOST_GIB}")
        given = int(self._args.memory * GIB)
        batch = self._args.max_batch or 1
        for subject in self._subjects:
            # Two hosts of a pair hold their sequences at once.
            needed = 2 * batch * (LEAST_CONTEXT + points.ROOM_TO_GROW) * subject.token_bytes
            if needed > given:
                raise SpecError(
                    f"model {subject.name}: decode batch {batch} of {LEAST_CONTEXT} tokens needs "
                    f"{format_bytes(needed)} of KV memory, --memory gives {format_bytes(given)}; "
                    "raise it or lower --max-batch"
                )
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self._args.device == "cpu" and given > available:
            raise SpecError(f"--memory {self._args.memory:g} GiB: this machine has "
                            f"{format_bytes(available)} free; lower it")  # fmt: skip
        return Bytes(given // UNIT_BYTES * UNIT_BYTES)

    def _checkpoints(self) -> dict[str, Path]:
        return {
            s.name: write_checkpoint(s.source, self._folder / f"model-{index}")
            if s.is_config else s.source.resolve()
            for index, s in enumerate(self._subjects)
        }  # fmt: skip


def _in_the_way(output: Path) -> SpecError:
    return SpecError(f"{output}: exists already; remove it or choose another -o")


def _write(path: Path, text: str, *, over: bool) -> None:
    """Whole or not at all; only `over` a file that was there."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    try:
        if over:
            part.replace(path)
        else:
            os.link(part, path)
    except FileExistsError:
        raise SpecError(f"{path}: came to be while this ran; the measurements are kept, remove it "
                        "and give the command again") from None  # fmt: skip
    finally:
        part.unlink(missing_ok=True)
