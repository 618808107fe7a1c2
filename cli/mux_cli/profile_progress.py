"""How far a profile is, on standard error."""

import sys
import time
from typing import Final

EVERY_S: Final = 5.0


class Progress:
    """One line: rewritten on a terminal, else printed once in `EVERY_S` seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._said = 0.0

    def __call__(self, what: str, part: float, left_s: float) -> None:
        now = time.monotonic()
        if not self._terminal and now - self._said < EVERY_S:
            return
        self._said = now
        left = "" if left_s == float("inf") else f", at most {left_s:.0f} s left"
        end = "\x1b[K\r" if self._terminal else "\n"
        print(f"{part:4.0%}{left}: {what}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal:
            print(file=sys.stderr)
