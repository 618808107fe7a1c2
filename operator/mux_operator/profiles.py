"""Measured step times that the live planner counts with: read once, at start, or not at all.

A wrong file ends the process that was given it: planning by data sheets instead would say nothing
and place models elsewhere.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mux_core.costmodel.profile_file import dump_profiles, load_profiles
from mux_core.costmodel.profile_set import ProfileSet, check_made
from mux_core.costmodel.sources import ProfileCatalog
from mux_core.errors import SpecError
from mux_operator.release import release


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """Profiles by GPU type, and the texts of their files, by which another process reads them."""

    by_gpu: Mapping[str, ProfileCatalog] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Sequence[ProfileSet]) -> Self:
        """SpecError where two of one GPU type are of different devices."""
        by_gpu = {gpu: ProfileCatalog(tuple(p for p in found if p.gpu == gpu))
                  for gpu in sorted({p.gpu for p in found})}  # fmt: skip
        return cls(by_gpu=by_gpu, texts=tuple(dump_profiles(profiles) for profiles in found))

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> Self:
        return cls.of([load_profiles(text, subject="a profile read before") for text in texts])

    @property
    def digest(self) -> str:
        """Differs when any figure does; empty without profiles."""
        return hashlib.sha256("".join(self.texts).encode()).hexdigest()[:16] if self.texts else ""


def read_profiles(paths: Iterable[Path]) -> Profiles:
    """The profiles of files and of folders of them, such as a mounted ConfigMap."""
    return Profiles.of([read_profile(file) for path in paths for file in _files(path)])


def _files(path: Path) -> Iterator[Path]:
    """The file, or a folder's by name; the kubelet's own folders in it are passed over."""
    if not path.is_dir():
        yield path
        return
    files = sorted(f for f in path.iterdir() if f.is_file())
    if not files:
        raise SpecError(f"profiles {path}: holds no file; put what muxserve profile wrote there, "
                        "or leave the setting out")  # fmt: skip
    yield from files


def read_profile(file: Path) -> ProfileSet:
    """One file. SpecError names it, the value and the fix."""
    subject = f"profile {file}"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{subject}: cannot be read ({error}); give a file that muxserve profile "
                        "wrote") from error  # fmt: skip
    found = load_profiles(text, subject=subject)
    check_made(found.made, release=release(), subject=subject)
    return found
