"""The data directory of one `muxserve up`: one server each, clean after the last.

    DIR/lock            flock held while a server runs; holds its pid
    DIR/processes.json  children by name, to find those a killed server left
    DIR/routes.json     the gateway's route table
    DIR/status.json     what `muxserve status` prints
    DIR/logs/           one file per process
    DIR/logs/plans/     the last plans, as PlacementPlans
    RUN/<unit>-<n>/     a unit's run directory (sockets), gone with the unit

RUN is DIR/run, or a short folder in the temporary directory when sockets below DIR would be
longer than a Unix socket's name may be.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mux_core.errors import SpecError
from mux_operator.local.processes import Identity, end_stale, from_document, to_document

_LONGEST_RUN: Final = 40
"""sun_path holds 108 bytes; a unit's name takes up to 50 and a socket's 17."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What an earlier server left and `claim` removed."""

    processes: tuple[Identity, ...] = ()
    run_folders: tuple[str, ...] = ()


class DataDir:
    """Claimed by `claim`, given back by `release`; paths inside are its properties."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None
        self._children: dict[str, Identity] = {}

    @property
    def run(self) -> Path:
        inside = self.root / "run"
        if len(str(inside)) <= _LONGEST_RUN:
            return inside
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:10]
        return Path(tempfile.gettempdir()) / f"muxserve-{os.getuid()}-{digest}"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def plans(self) -> Path:
        return self.logs / "plans"

    @property
    def routes(self) -> Path:
        return self.root / "routes.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    def claim(self) -> Leftover:
        """Takes the lock, ends what a killed server left. SpecError while another one runs."""
        _private_folder(self.root)
        self._take_lock()
        left = Leftover(processes=end_stale(self._recorded()), run_folders=_folders(self.run))
        shutil.rmtree(self.run, ignore_errors=True)
        self._processes_file.unlink(missing_ok=True)
        self.status.unlink(missing_ok=True)
        self.routes.unlink(missing_ok=True)
        _private_folder(self.run)
        _private_folder(self.logs)
        shutil.rmtree(self.plans, ignore_errors=True)
        _private_folder(self.plans)
        return left

    def record(self, children: Mapping[str, Identity]) -> None:
        """Writes down which processes are ours, before anything depends on them."""
        if children == self._children:
            return
        self._children = dict(children)
        write_json(self._processes_file, {n: to_document(i) for n, i in children.items()})

    def release(self) -> None:
        """Removes sockets, records and the lock; logs stay. Does nothing when not claimed."""
        if self._lock is None:
            return
        shutil.rmtree(self.run, ignore_errors=True)
        for path in (self._processes_file, self.status, self.routes, self._lock_file):
            path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    @property
    def _lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def _processes_file(self) -> Path:
        return self.root / "processes.json"

    def _take_lock(self) -> None:
        while self._lock is None:
            descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise SpecError(
                    f"data directory {self.root}: in use by muxserve up with pid {holder}; "
                    "stop that one (kill its pid), or give another --data-dir"
                ) from None
            if _is_still_named(descriptor, self._lock_file):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                self._lock = descriptor
            else:  # the last holder removed the name between our open and our lock
                os.close(descriptor)

    def _recorded(self) -> Sequence[Identity]:
        try:
            document = json.loads(self._processes_file.read_text())
        except (OSError, ValueError):
            return ()
        values = document.values() if isinstance(document, dict) else ()
        found = (from_document(value) for value in values if isinstance(value, dict))
        return tuple(identity for identity in found if identity is not None)


def write_json(path: Path, document: Any) -> None:
    """Replaces the file at once: a reader sees the old or the new, never half."""
    text = document if isinstance(document, str) else json.dumps(document, indent=1)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def default_root(port: int) -> Path:
    """Where the server of `port` keeps its files without --data-dir."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "muxserve" / f"up-{port}"


def _private_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"data directory {path}: {error.strerror}; give another "
                        "--data-dir") from error  # fmt: skip
    if path.stat().st_uid != os.getuid() or not os.access(path, os.W_OK):
        raise SpecError(f"data directory {path}: not ours to write; give another --data-dir")


def _folders(path: Path) -> tuple[str, ...]:
    with contextlib.suppress(OSError):
        return tuple(sorted(p.name for p in path.iterdir()))
    return ()


def _is_still_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
