"""Data folders that cannot be left behind for ever.

A folder's lock is held by its owner; whoever makes the next one removes those whose owner is gone,
also when it was killed.
"""

import fcntl
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "muxserve-cluster-"
_LOCK = ".owner"
_OWNED_WITHIN = 60.0


@contextmanager
def data_folder() -> Iterator[Path]:
    """A fresh folder, removed at the end."""
    root = Path(tempfile.gettempdir())
    for old in root.glob(f"{_PREFIX}*"):
        _remove_if_orphaned(old)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            release_mounts(folder)
            shutil.rmtree(folder, ignore_errors=True)


def release_mounts(folder: Path) -> None:
    """Detach what killed processes left mounted below the folder."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    # The innermost first; --lazy because a dying process may still hold one.
    for place in sorted(mounts, reverse=True):
        if Path(place).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)


def _remove_if_orphaned(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    except FileNotFoundError:
        # Half removed; or its owner has made it this very moment and not locked it yet.
        if folder.exists() and time.time() - folder.stat().st_mtime > _OWNED_WITHIN:
            shutil.rmtree(folder, ignore_errors=True)
