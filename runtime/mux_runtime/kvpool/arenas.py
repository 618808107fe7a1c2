"""Arenas: unnamed files in memory, and the book of who loads and who may write which.

Nothing here has a name in any file system, so nothing stays behind however a process ends.
"""

import mmap
import os
from dataclasses import dataclass
from typing import Final

from mux_core.errors import CapacityError, InvariantError, SpecError
from mux_core.units import format_bytes
from mux_runtime.kvpool.allocator import EXHAUSTED

_FOLDER: Final = "/dev/shm"


def new_file(nbytes: int) -> tuple[int, str]:
    """An unnamed, empty file in memory of that size, and what backs it: `tmpfs` or `memfd`.

    The folder is passed over where it is missing or too small (containers get 64 MiB by default):
    a page that does not fit would end the process that touches it with SIGBUS.
    """
    fd, backing = _unnamed(nbytes), "tmpfs"
    if fd is None:
        fd, backing = os.memfd_create("mux-arena", os.MFD_CLOEXEC), "memfd"
    os.ftruncate(fd, nbytes)
    return fd, backing


def _unnamed(nbytes: int) -> int | None:
    try:
        room = os.statvfs(_FOLDER)
        if room.f_bavail * room.f_frsize < nbytes:
            return None
        return os.open(_FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


class KvArena:
    """The KV memory of one GPU. The owner maps it only to give pages back."""

    def __init__(self, nbytes: int) -> None:
        if nbytes < 1:
            raise SpecError(f"KV arena: {nbytes} bytes; give it at least one page")
        self.nbytes: Final = nbytes
        self.fd, self.backing = new_file(nbytes)
        self._map = mmap.mmap(self.fd, nbytes, flags=mmap.MAP_SHARED)

    @property
    def resident_bytes(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def punch(self, start: int, length: int) -> None:
        """Gives back the whole pages within; part pages stay as they are."""
        if start < 0 or length < 0 or start + length > self.nbytes:
            raise SpecError(f"KV arena: punch of bytes {start}..{start + length}, the arena has "
                            f"{self.nbytes}; stay within it")  # fmt: skip
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self._map.madvise(mmap.MADV_REMOVE, first, last - first)


@dataclass(slots=True, kw_only=True)
class WeightFile:
    """One model's weights. `loader` is the connection that may still write; None once sealed."""

    fd: int
    nbytes: int
    loader: int | None
    digest: str = ""

    @property
    def is_sealed(self) -> bool:
        return self.loader is None


class WeightBook:
    """Weight arenas by name, together within `limit` bytes. A connection is a number; an arena it
    loads lives no longer than it unless sealed."""

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        self._files: dict[str, WeightFile] = {}

    def find(self, name: str, nbytes: int) -> WeightFile | None:
        """The arena, if there is one. SpecError when it has another size."""
        file = self._files.get(name)
        if file is not None and file.nbytes != nbytes:
            raise SpecError(f"weights {name}: {nbytes} bytes wanted, the arena has {file.nbytes}; "
                            "drop it first, or name another version differently")  # fmt: skip
        return file

    def create(self, name: str, nbytes: int, *, loader: int) -> WeightFile:
        """A new arena with all its pages, so that loading cannot run out of them."""
        if nbytes < 1:
            raise SpecError(f"weights {name}: {nbytes} bytes; weights have at least one")
        held = sum(file.nbytes for file in self._files.values())
        if held + nbytes > self._limit:
            raise CapacityError(
                f"weights {name}: {format_bytes(nbytes)} beside {format_bytes(held)} of other "
                f"weights, the unit has {format_bytes(self._limit)}; drop a model, or give the "
                "unit more memory", reason=EXHAUSTED,
            )  # fmt: skip
        fd, _ = new_file(nbytes)
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as error:
            os.close(fd)
            raise CapacityError(
                f"weights {name}: no memory for {format_bytes(nbytes)} ({error.strerror}); "
                "give the unit more, or place the model elsewhere", reason=EXHAUSTED,
            ) from error  # fmt: skip
        self._files[name] = WeightFile(fd=fd, nbytes=nbytes, loader=loader)
        return self._files[name]

    def seal(self, name: str, digest: str, *, loader: int) -> None:
        """Makes the arena permanent and read-only for every later opener."""
        file = self._files.get(name)
        if file is None or file.loader != loader:
            raise InvariantError(f"weights {name}: sealed by a connection that does not load them")
        writable, file.fd = file.fd, os.open(f"/proc/self/fd/{file.fd}", os.O_RDONLY | os.O_CLOEXEC)
        os.fchmod(writable, 0o400)
        os.close(writable)
        file.loader, file.digest = None, digest

    def drop(self, name: str) -> bool:
        file = self._files.pop(name, None)
        if file is not None:
            os.close(file.fd)
        return file is not None

    def drop_unsealed_of(self, loader: int) -> None:
        """Drops what a connection that ended was loading."""
        for name in [name for name, file in self._files.items() if file.loader == loader]:
            self.drop(name)

    def sizes(self, *, sealed: bool) -> dict[str, int]:
        """Bytes by name, of the sealed arenas or of those being loaded."""
        return {name: file.nbytes for name, file in sorted(self._files.items())
                if file.is_sealed is sealed}  # fmt: skip
