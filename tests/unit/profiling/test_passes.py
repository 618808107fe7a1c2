"""Which of a point's measurements counts."""

from collections.abc import Sequence

import pytest

from mux_runtime.profiling.journal import Journal
from mux_runtime.profiling.points import Kind, Point
from mux_runtime.profiling.run import values

POINT = Point(kind=Kind.DECODE, model="a")


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
