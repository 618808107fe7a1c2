"""Engine hosts for a script: checkpoints in memory, one child process per host."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from geometries import write_model
from record import Recorder
from shares import Child

SHM = Path("/dev/shm")


@contextlib.contextmanager
def checkpoints(record: Recorder, names: Sequence[str], seed: int) -> Iterator[dict[str, Path]]:
    """Checkpoints of these geometries, in memory where there is room, gone afterwards."""
    room = SHM.exists() and shutil.disk_usage(SHM).free > 48 << 30
    with tempfile.TemporaryDirectory(dir=SHM if room else None, prefix="mux-models-") as folder:
        yield {name: write_model(name, Path(folder), seed) for name in names}


@contextlib.contextmanager
def engine(model: Path, device: str, kv_bytes: int, environment: dict[str, str]) -> Iterator[Child]:
    """An open engine host."""
    line = ["--model", str(model), "--device", device, "--kv-bytes", str(kv_bytes)]
    with Child("engine_child.py", line, environment) as host:
        host.ask(do="open")
        yield host
