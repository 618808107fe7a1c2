"""The planner's process: it answers, it dies with its parent, and when it fails another follows."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import psutil
import pytest

from mux_core.errors import PeerError
from mux_core.planning import PlacementProblem
from mux_core.problem import question
from mux_operator.search import SearchProcess, ThreadSearch
from world_builders import a_world, an_llm, settled, slots

PARENT = """
import asyncio, sys
from mux_operator.search import SearchProcess
from mux_core.planning import PlacementProblem
async def run():
    search = SearchProcess()
    await search.choose(PlacementProblem(now=0.0, nodes=(), llms=()), deadline_s=5)
    print(search.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(run())
"""


@pytest.fixture
async def search() -> AsyncIterator[SearchProcess]:
    made = SearchProcess(hung_s=0.5)
    yield made
    await made.close()


def a_problem() -> PlacementProblem:
    world = settled(an_llm("a"), nodes=(slots(2),))
    world.add(an_llm("b", min_replicas=2, max_replicas=2))
    world.cycle()
    world.pass_time()
    return question(world.snapshot()).problem


def is_gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


async def test_another_process_gives_the_same_answer(search: SearchProcess) -> None:
    problem = a_problem()
    wanted = await ThreadSearch().choose(problem, deadline_s=60)
    assert wanted.plan.steps
    assert await search.choose(problem, deadline_s=60) == wanted
    pid = search.pid
    await search.choose(problem, deadline_s=60)
    assert search.pid == pid, "one process answers all"


async def test_a_planner_that_fails_says_so_and_goes_on(search: SearchProcess) -> None:
    broken = question(a_world(an_llm("a")).snapshot()).problem
    wrong = PlacementProblem(now=0.0, nodes=None, llms=())  # type: ignore[arg-type]
    with pytest.raises(PeerError, match="planner default: TypeError"):
        await search.choose(wrong, deadline_s=5)
    pid = search.pid
    await search.choose(broken, deadline_s=5)
    assert search.pid == pid


async def test_a_killed_process_is_replaced(search: SearchProcess) -> None:
    problem = a_problem()
    await search.choose(problem, deadline_s=5)
    pid = search.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that it dies in the middle of the question
    asked = asyncio.create_task(search.choose(problem, deadline_s=60))
    await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(PeerError, match="ended in the middle"):
        await asked
    assert (await search.choose(problem, deadline_s=5)).plan.steps
    assert search.pid != pid


async def test_a_hung_process_is_killed_and_replaced(search: SearchProcess) -> None:
    problem = a_problem()
    await search.choose(problem, deadline_s=5)
    pid = search.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(PeerError, match="no answer"):
        await search.choose(problem, deadline_s=0.1)
    assert is_gone(pid)
    assert (await search.choose(problem, deadline_s=5)).plan.steps


async def test_a_question_nobody_waits_for_leaves_no_answer_to_the_next(
    search: SearchProcess,
) -> None:
    problem = a_problem()
    asked = asyncio.create_task(search.choose(problem, deadline_s=5))
    await asyncio.sleep(0.05)
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked
    empty = PlacementProblem(now=0.0, nodes=(), llms=())
    assert (await search.choose(empty, deadline_s=5)).plan.proposed.units == ()


def test_it_dies_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        child = psutil.Process(pid)
        child.suspend()  # as deaf to the end of its input as in the middle of a search
        parent.kill()
    child.wait(10)
