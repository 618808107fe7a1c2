"""Cores that tasks share: what is shared, what waits its turn, and that no work is lost."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_core.costmodel.profile_set import CpuWork, UnitCost, Work
from mux_core.simulator.cores import Cores, CpuNode


class Clock:
    """Calls whoever asked to be called, in order of time."""

    def __init__(self) -> None:
        self.dates: list[tuple[float, Cores]] = []
        self.ended: dict[str, float] = {}

    def ask(self, at: float, cores: Cores) -> None:
        self.dates.append((at, cores))

    def ends(self, name: str) -> Callable[[float], None]:
        def note(now: float) -> None:
            self.ended[name] = now

        return note

    def run(self, until: float = float("inf")) -> None:
        while due := [date for date in self.dates if date[0] <= until]:
            at, cores = min(due, key=lambda date: date[0])
            self.dates.remove((at, cores))
            if cores.due == at:
                cores.settle(at)


def node(clock: Clock, cores: int = 2, **cost: object) -> CpuNode:
    return CpuNode(CpuWork(cores=cores, unit=UnitCost(**cost)), clock.ask)  # type: ignore[arg-type]


def test_fewer_tasks_than_cores_do_not_slow_each_other() -> None:
    clock = Clock()
    cores = Cores(2, clock.ask)
    cores.run(0.0, 1.0, clock.ends("a"))
    cores.run(0.0, 2.0, clock.ends("b"))
    clock.run()
    assert clock.ended == {"a": 1.0, "b": 2.0}


def test_more_tasks_than_cores_share_them_equally() -> None:
    clock = Clock()
    cores = Cores(2, clock.ask)
    for name in "abc":
        cores.run(0.0, 1.0, clock.ends(name))
    clock.run()
    assert clock.ended == {name: pytest.approx(1.5) for name in "abc"}


def test_cores_that_are_not_all_used_slow_who_wants_them_all() -> None:
    clock = Clock()
    part = Work(step_s=0.0, token_s=0.0, request_s=0.0)
    used = node(clock, cores_used=0.5, scheduler=part, client=part)
    used.step(0.0, 1.0, 1, clock.ends("alone"), threads=1)
    clock.run()
    for name in "ab":
        used.step(2.0, 1.0, 1, clock.ends(name), threads=1)
    clock.run()
    assert clock.ended == {"alone": 1.0, "a": pytest.approx(4.0), "b": pytest.approx(4.0)}


def test_who_comes_later_slows_those_that_run() -> None:
    clock = Clock()
    cores = Cores(1, clock.ask)
    cores.run(0.0, 1.0, clock.ends("first"))
    clock.run(until=0.5)
    cores.run(0.5, 0.25, clock.ends("late"))
    clock.run()
    # From .5 on half a core each: the late one needs .5 s, then .25 s are left for the first.
    assert clock.ended == {"late": pytest.approx(1.0), "first": pytest.approx(1.25)}


def test_a_task_of_two_threads_takes_two_cores() -> None:
    clock = Clock()
    cores = Cores(2, clock.ask)
    cores.run(0.0, 1.0, clock.ends("wide"), threads=2)
    cores.run(0.0, 1.0, clock.ends("one"))
    clock.run()
    assert clock.ended == {"wide": pytest.approx(1.5), "one": pytest.approx(1.5)}


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 5)), min_size=1, max_size=12),
)
def test_cores_are_never_idle_while_enough_waits_and_never_do_more(
    count: int, asked: list[tuple[float, float]]
) -> None:
    clock = Clock()
    cores = Cores(count, clock.ask)
    for number, (at, seconds) in enumerate(sorted(asked)):
        clock.run(until=at)
        cores.run(at, seconds, clock.ends(str(number)))
    clock.run()
    work, last = sum(seconds for _, seconds in asked), max(clock.ended.values())
    assert len(clock.ended) == len(asked)
    assert last >= min(at for at, _ in asked) + work / count - 1e-6
    # Whoever ends last never waited for more than all that others had to do.
    assert last <= max(at for at, _ in asked) + work + 1e-6
    for number, (at, seconds) in enumerate(sorted(asked)):
        assert clock.ended[str(number)] >= at + seconds - 1e-6


def test_the_scheduler_answers_one_step_after_another() -> None:
    clock = Clock()
    units = node(clock, cores=4, scheduler=Work(step_s=0.1))
    for name in "ab":
        units.step(0.0, 1.0, 1, clock.ends(name), threads=1)
    clock.run()
    assert clock.ended == {"a": pytest.approx(1.0), "b": pytest.approx(1.1)}


def test_the_client_takes_a_core_and_nobody_waits_for_it() -> None:
    clock = Clock()
    units = node(clock, cores=1, client=Work(token_s=0.5))
    units.step(0.0, 1.0, 2, clock.ends("step"), threads=1)
    clock.run(until=1.0)
    assert clock.ended == {"step": pytest.approx(1.0)}
    units.step(1.0, 1.0, 0, clock.ends("next"), threads=1)
    clock.run()
    assert clock.ended["next"] == pytest.approx(3.0)  # one second of it was the client's


def test_a_request_arrives_when_client_and_scheduler_are_done_with_it() -> None:
    clock = Clock()
    units = node(clock, request_s=0.5, step_s=0.1, scheduler=Work(request_s=0.1),
                 client=Work(request_s=0.1))  # fmt: skip
    units.arrive(0.0, clock.ends("request"))
    clock.run()
    assert clock.ended == {"request": pytest.approx(0.4)}
