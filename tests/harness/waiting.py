"""Waiting for the world to reach a state, with a message that says what was missing."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    check: Callable[[], T], what: str, *, within: float = 30.0, every: float = 0.05
) -> T:
    """The first true answer of `check`; an AssertionError from it counts as not yet."""
    deadline = time.monotonic() + within
    while True:
        try:
            answer = check()
        except AssertionError as error:
            problem = str(error)
        else:
            if answer:
                return answer
            problem = f"last answer {answer!r}"
        _check_deadline(deadline, f"not within {within} s: {what} ({problem})")
        time.sleep(every)


async def eventually_async(
    check: Callable[[], Awaitable[T]], what: str, *, within: float = 30.0, every: float = 0.05
) -> T:
    """`eventually` for a test that has work of its own on the event loop."""
    deadline = time.monotonic() + within
    while True:
        try:
            answer = await check()
        except AssertionError as error:
            problem = str(error)
        else:
            if answer:
                return answer
            problem = f"last answer {answer!r}"
        _check_deadline(deadline, f"not within {within} s: {what} ({problem})")
        await asyncio.sleep(every)


def _check_deadline(deadline: float, problem: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(problem)
