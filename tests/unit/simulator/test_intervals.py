"""Intervals of figures over few runs."""

import numpy as np
import pytest

from mux_core.simulator.intervals import interval, paired_difference


def mean(values):
    return float(np.mean(values))


def test_of_a_mean_it_is_students_t():
    found = interval(mean, [1.0, 2.0, 3.0, 4.0, 5.0])
    # sd = sqrt(2.5), t(4, 97.5 %) = 2.776
    assert found.value == 3.0
    assert found.high - found.low == pytest.approx(2 * 2.776 * np.sqrt(2.5 / 5), rel=1e-3)


def test_one_run_leaves_it_open():
    found = interval(mean, [2.0])
    assert (found.value, found.low, found.high) == (2.0, None, None)
    assert found.within(0, 1) == found


def test_it_is_cut_to_what_the_figure_can_be():
    found = interval(mean, [0.9, 1.0, 1.0]).within(0.0, 1.0)
    assert found.low > 0.5
    assert found.high == 1.0


def test_it_covers_the_truth_of_a_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        runs = [(rng.poisson(45), rng.poisson(50)) for _ in range(5)]
        found = interval(lambda some: sum(a for a, _ in some) / sum(b for _, b in some), runs)
        covered += found.low <= 0.9 <= found.high
    assert 0.90 <= covered / 400 <= 0.99


def test_pairs_cancel_what_both_runs_share():
    shared = [1.0, 9.0, 4.0, 7.0]
    found = paired_difference(mean, [x + 0.5 for x in shared], shared)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="shorter"):
        paired_difference(mean, [1.0, 2.0], [1.0])
