"""Data folders that cannot be left behind for ever.

A folder's lock is held by its owner; whoever makes the next one removes those whose owner is gone,
also when it was killed.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "muxserve-cluster-"
_LOCK = ".owner"


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
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_orphaned(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except (BlockingIOError, FileNotFoundError):
        # In use; or its owner has made it this very moment and not locked it yet.
        return
