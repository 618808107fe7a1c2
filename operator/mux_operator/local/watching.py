"""Which files changed, by looking again and again: works on every file system.

A file counts as changed once its signature differs from the one last taken *and* stayed the same
between two looks, so that a file half written by an editor is not read too early.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mux_operator.local.manifests import manifest_files

INTERVAL_S: Final = 0.4

Signature = tuple[int, int, int]
"""mtime_ns, size and inode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Files to read again, and files that are gone."""

    changed: tuple[Path, ...] = ()
    gone: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


def signatures(paths: Sequence[Path]) -> dict[Path, Signature]:
    """The signature of every manifest file that `paths` stand for now."""
    found = {}
    for file in manifest_files(paths):
        try:
            stat = file.stat()
        except OSError:
            continue
        found[file] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


@dataclass(slots=True)
class FileWatch:
    """Remembers what was taken; `look` compares it with what is."""

    taken: Mapping[Path, Signature]
    _last: Mapping[Path, Signature] = field(default_factory=dict)

    def look(self, now: Mapping[Path, Signature]) -> Changes:
        """Changes that are stable since the look before; they count as taken from then on."""
        stable = {file: s for file, s in now.items() if self._last.get(file) == s}
        changed = tuple(sorted(f for f, s in stable.items() if self.taken.get(f) != s))
        # A file replaced by rename is missing for a moment in some editors: gone means twice.
        gone = tuple(sorted(f for f in self.taken if f not in now and f not in self._last))
        self._last = dict(now)
        self.taken = {**{f: s for f, s in self.taken.items() if f not in gone},
                      **{f: now[f] for f in changed}}  # fmt: skip
        return Changes(changed=changed, gone=gone)
