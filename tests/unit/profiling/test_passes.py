"""Which of a point's measurements counts."""

from collections.abc import Sequence

import pytest

from mux_runtime.profiling.journal import Journal
from mux_runtime.profiling.points import Grid, Kind, Point
from mux_runtime.profiling.run import due, settled, unfinished, values

POINT = Point(kind=Kind.DECODE, model="a")
UNIT = Point(kind=Kind.UNIT)


@pytest.mark.parametrize(
    ("taken", "counts"),
    [([0.3], 0.3), ([0.3, 0.2], 0.2), ([0.3, 0.1, 0.2], 0.2), ([0.1, 0.1, 9.0], 0.1)],
    ids=["one", "the smaller of two", "the middle one", "no outlier"],
)
def test_the_middle_of_a_points_passes_counts(tmp_path, taken: Sequence[float], counts: float):
    journal = Journal.open(tmp_path / "j", {"format": "j"})
    for turn, seconds in enumerate(taken):
        journal.note(POINT.key, turn, {"s": seconds})
    journal.close()
    other = Point(kind=Kind.DECODE, model="b")
    assert values(journal, [POINT, other]) == {POINT.key: {"s": counts}}


def test_of_a_unit_the_mean_of_the_passes_counts_part_by_part(tmp_path):
    journal = Journal.open(tmp_path / "j", {"format": "j"})
    for turn, (step, token, run) in enumerate(((9, 0, 3), (0, 0.5, 1))):
        cost = {"step_s": step, "token_s": token, "scheduler": {"step_s": run}}
        journal.note(UNIT.key, turn, {"cost": cost, "steps": {"m": {"batches": [1.0, step]}}})
    journal.close()
    assert values(journal, [UNIT])[UNIT.key] == {
        "cost": {"step_s": 4.5, "token_s": 0.25, "scheduler": {"step_s": 2}},
        "steps": {"m": {"batches": [1.0, 4.5]}}}  # fmt: skip


@pytest.mark.parametrize(
    ("taken", "enough"),
    [([1.0, 1.0], False), ([1.0, 1.02, 0.98], True), ([1.0, 1.1, 0.98], False),
     ([9.0, 1.0, 1.01, 0.99, 0.1], True)],
    ids=["two never are", "three alike", "three unlike", "the middle ones of five"],
)  # fmt: skip
def test_a_point_is_settled_where_the_passes_about_the_middle_agree(
    taken: Sequence[float], enough: bool
):
    assert settled([{"s": seconds} for seconds in taken]) is enough


def test_later_passes_visit_what_is_not_settled(tmp_path):
    steady, other = (Point(kind=Kind.DECODE, model=name) for name in ("steady", "other"))
    grid = Grid(points=(steady, other, UNIT), passes=3, most_passes=5,
                once=frozenset({Kind.UNIT}), left_out=())  # fmt: skip
    journal = Journal.open(tmp_path / "j", {"format": "j"})
    assert due(grid, journal, 0) == [steady, other, UNIT]
    journal.note(UNIT.key, 0, {})
    for turn in range(3):
        assert due(grid, journal, turn)[:2] == [steady, other]
        journal.note(steady.key, turn, {"s": 1.0})
        journal.note(other.key, turn, {"s": 1.0 + turn})
    assert due(grid, journal, 3) == [other]
    assert unfinished(grid, journal)
    journal.note(other.key, 3, {"s": 2.01})
    assert due(grid, journal, 3) == []  # measured by a run that was killed later
    journal.note(other.key, 4, {"s": 2.02})
    assert due(grid, journal, 5) == []
    assert not unfinished(grid, journal)
    journal.close()
