"""Where the planner works: off the event loop, which goes on while a thousand LLMs are planned.

`SearchProcess` keeps one child process, because a search in a thread holds the interpreter lock for
seconds. The child remembers what it has estimated, so a re-plan is fast; it ends with its parent,
whatever ends that, and one that gives no answer is killed and replaced with the next question.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import pickle
import signal
import struct
import sys
import time
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol

from mux_core.errors import MuxError, PeerError
from mux_core.planning import Choice, PlacementProblem, Planner, choose
from mux_core.profiled import ProfiledPlanner
from mux_operator.profiles import Profiles

log = logging.getLogger(__name__)

HUNG_S: Final = 120.0
"""An answer later than this after its deadline never comes: no step of a search takes as long."""
_LENGTH: Final = struct.Struct(">Q")
_PR_SET_PDEATHSIG: Final = 1


class Search(Protocol):
    """Answers one problem at a time; used from one event loop.

    `profiles` stands for the measured step times it plans with; another means another answer.
    """

    @property
    def profiles(self) -> str: ...

    async def choose(self, problem: PlacementProblem, *, deadline_s: float) -> Choice:
        """What was found until the deadline. MuxError when the planner failed."""
        ...

    async def close(self) -> None:
        """Ends whatever works; a question under way gets no answer."""
        ...


class ThreadSearch:
    """The planner in a thread: for problems of a few LLMs."""

    profiles = ""

    def __init__(self, planner: Planner | None = None) -> None:
        self.planner: Planner = planner or ProfiledPlanner()

    async def choose(self, problem: PlacementProblem, *, deadline_s: float) -> Choice:
        return await asyncio.to_thread(_choose, self.planner, problem, deadline_s)

    async def close(self) -> None:
        return


class SearchProcess:
    """The default planner in a child process, started with the first question."""

    def __init__(self, profiles: Profiles | None = None, *, hung_s: float = HUNG_S) -> None:
        self._profiles = profiles or Profiles()
        self.profiles = self._profiles.digest
        self._hung_s = hung_s
        self._turn = asyncio.Lock()
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def choose(self, problem: PlacementProblem, *, deadline_s: float) -> Choice:
        async with self._turn:
            process = await self._started()
            try:
                async with asyncio.timeout(deadline_s + self._hung_s):
                    answer = await _asked(process, _Question(problem, deadline_s))
            except TimeoutError as error:
                await self.close()
                raise PeerError(f"planner: no answer {self._hung_s:g} s after its deadline of "
                                f"{deadline_s:g} s; its process was killed, the next question "
                                "starts another") from error  # fmt: skip
            except (EOFError, ConnectionError) as error:
                await self.close()
                raise PeerError("planner: its process ended in the middle of a search, code "
                                f"{process.returncode}; the next question starts "
                                "another") from error  # fmt: skip
            except asyncio.CancelledError:
                # An answer nobody reads would be taken for the next question's.
                await self.close()
                raise
        if isinstance(answer, MuxError):
            raise answer
        return answer

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def _started(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            command = (sys.executable, "-m", "mux_operator.search", str(os.getpid()))
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, start_new_session=True
            )
            await _told(self._process, self._profiles.texts)
        return self._process


@dataclass(frozen=True, slots=True)
class _Question:
    problem: PlacementProblem
    deadline_s: float


async def _asked(process: Process, question: _Question) -> Choice | MuxError:
    assert process.stdout is not None
    await _told(process, question)
    (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
    # Only our own child writes into this pipe.
    answer: Choice | MuxError = pickle.loads(await process.stdout.readexactly(length))
    return answer


async def _told(process: Process, value: object) -> None:
    assert process.stdin is not None
    text = pickle.dumps(value)
    process.stdin.write(_LENGTH.pack(len(text)) + text)
    await process.stdin.drain()


def _choose(planner: Planner, problem: PlacementProblem, deadline_s: float) -> Choice:
    """What the planner finds in time; whatever breaks it becomes a typed error."""
    end = time.monotonic() + deadline_s
    try:
        return choose(planner, problem, late=lambda: time.monotonic() >= end)
    except MuxError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, AssertionError) as error:
        log.exception("planner %s failed", planner.name)
        raise PeerError(f"planner {planner.name}: {type(error).__name__}: {error}") from error


def main() -> int:
    """The child: reads its profiles, then answers questions from standard input until it closes."""
    parent = int(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    answers, questions = sys.stdout.buffer, sys.stdin.buffer
    sys.stdout = sys.stderr  # nothing else may write between the answers
    planner = ProfiledPlanner(Profiles.from_texts(_read(questions) or ()).by_gpu)
    while (question := _read(questions)) is not None:
        try:
            answer: Choice | MuxError = _choose(planner, question.problem, question.deadline_s)
        except MuxError as error:
            answer = PeerError(str(error))
        text = pickle.dumps(answer)
        answers.write(_LENGTH.pack(len(text)) + text)
        answers.flush()
    return 0


def _read(stream: BinaryIO) -> Any:
    """What the parent sent next; None when it sends no more."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    return pickle.loads(stream.read(length))


if __name__ == "__main__":
    sys.exit(main())
