"""What the runs that measure one profile note of themselves, in its journal beside the points."""

import hashlib
from pathlib import Path
from typing import Final

from mux_runtime.profiling.journal import Journal

_COMMIT: Final = "run/commit/"
_WRITTEN: Final = "run/written"


def journal_of(profile: Path) -> Path:
    """Where the measurements of a profile are kept until it is whole."""
    return profile.with_name(f"{profile.name}.journal")


def is_whole(profile: Path) -> bool:
    """Whether a profile is there that no further run would add to."""
    return profile.exists() and not journal_of(profile).exists()


class RunNotes:
    """Notes in an open journal; a run that goes on adds its own."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def begin(self, commit: str) -> None:
        self._journal.note(f"{_COMMIT}{commit}", 0, {})

    @property
    def commits(self) -> str:
        """The release's commits that the runs were of."""
        keys = {key for key, _ in self._journal.found if key.startswith(_COMMIT)}
        return ", ".join(sorted(key.removeprefix(_COMMIT) for key in keys))

    def wrote(self, text: str) -> None:
        """A profile was written of the passes so far."""
        self._journal.note(_WRITTEN, 0, {"sha256": _digest(text.encode())})

    def wrote_this(self, path: Path) -> bool:
        """Whether a file is the profile that a run wrote, unchanged."""
        said = self._journal.found.get((_WRITTEN, 0))
        return said is not None and said["sha256"] == _digest(path.read_bytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
