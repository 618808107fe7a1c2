"""How many engine hosts may be starting at once.

On a GPU one at a time, over all processes that know the lock file: hosts that start together
spoil each other's memory measurement. On CPU as many as there are cores; a host waits for another
only while that one loads their common weights, and then it has begun already.
"""

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

_RETRY_S: Final = 0.05


class StartGate(Protocol):
    """Entered before a host is spawned, left when it is open or gone."""

    async def enter(self) -> None: ...

    def leave(self) -> None: ...


class CoreGate:
    """At most `cores` at once."""

    def __init__(self, cores: int) -> None:
        self._places = asyncio.Semaphore(cores)

    async def enter(self) -> None:
        await self._places.acquire()

    def leave(self) -> None:
        self._places.release()


class FileGate:
    """One at a time among all processes that use `path`; the kernel opens it when we die."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._mine = asyncio.Lock()

    async def enter(self) -> None:
        await self._mine.acquire()
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _locked(fd):  # noqa: ASYNC110 (flock cannot be awaited)
                await asyncio.sleep(_RETRY_S)
        except BaseException:
            os.close(fd)
            self._mine.release()
            raise
        self._fd = fd

    def leave(self) -> None:
        os.close(self._fd)
        self._mine.release()


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
