"""The event streams of a process that run now, so that its end can be told to their clients."""

import asyncio
import contextlib
from collections.abc import Iterator


class Streams:
    """Running streams; `cut_all` cancels them, and `cutting` tells why they were cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self.cutting = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While this task writes a stream."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def cut_all(self) -> None:
        self.cutting = True
        for task in self._tasks:
            task.cancel()
