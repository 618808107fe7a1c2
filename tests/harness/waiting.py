"""Waiting for the world to reach a state, with a message that says what was missing."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    check: Callable[[], T], what: str, *, within: float = 20.0, every: float = 0.05
) -> T:
    """The first true answer of `check`; an AssertionError from it counts as not yet."""
    deadline = time.monotonic() + within
    while True:
        problem = ""
        try:
            answer = check()
        except AssertionError as error:
            problem = str(error)
        else:
            if answer:
                return answer
            problem = f"last answer {answer!r}"
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within} s: {what} ({problem})")
        time.sleep(every)
