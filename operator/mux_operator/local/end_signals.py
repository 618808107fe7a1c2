"""The signals that end the server, taken from before its data directory is claimed until after.

An event loop takes signals only while it runs; one that came before or after it would kill the
process and leave the lock.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Final, Self

NUMBERS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndSignals:
    """Counts the signals while entered; `told` also calls somebody for each."""

    def __init__(self) -> None:
        self.count = 0
        self._listener: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._take) for number in NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def told(self, listener: Callable[[], object]) -> Iterator[None]:
        """Calls `listener` in the running loop, once for each signal, those before included."""
        loop = asyncio.get_running_loop()
        self._listener = lambda: loop.call_soon_threadsafe(listener)
        for _ in range(self.count):
            listener()
        try:
            yield
        finally:
            self._listener = None

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._listener is not None:
            self._listener()


__all__ = ["EndSignals"]
