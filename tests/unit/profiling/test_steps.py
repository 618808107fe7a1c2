"""Sequences of a measured batch: about their mean, none beyond what the model takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_runtime.profiling.steps import spread


@given(st.integers(1, 4000), st.integers(1, 64), st.integers(0, 4000))
def test_lengths_keep_their_mean_and_stay_in_bounds(mean: int, count: int, room: int) -> None:
    found = spread(mean, count, longest=mean + room)
    assert len(found) == count
    assert all(1 <= length <= mean + room for length in found)
    assert sum(found) / count == pytest.approx(mean, abs=0.51)


def test_one_sequence_has_the_mean_and_many_are_unlike() -> None:
    assert spread(64, 1, longest=2048) == [64]
    assert spread(64, 4, longest=2048) == [29, 52, 76, 99]
    assert spread(2008, 4, longest=2008) == [2008] * 4
