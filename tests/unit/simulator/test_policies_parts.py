"""SM parts: who may start beside whom."""

import pytest

from mux_core.engine import Phase
from mux_core.simulator.policies.sm_parts import SmParts

PREFILL, DECODE = Phase.PREFILL, Phase.DECODE


def holding(*percents: int) -> SmParts:
    parts = SmParts()
    for index, percent in enumerate(percents):
        assert parts.fits(percent)
        parts.take((f"llm-{index}", DECODE), percent)
    return parts


@pytest.mark.parametrize(
    ("held", "percent", "fits"),
    [
        pytest.param((20,), 100, True, id="all SMs beside two parts"),
        pytest.param((30,), 100, False, id="all SMs not beside three"),
        pytest.param((30,), 90, True, id="nine parts beside three"),
        pytest.param((30, 30), 90, False, id="nine parts not beside six"),
        pytest.param((40,), 80, True, id="eight parts beside four"),
        pytest.param((30, 30), 80, False, id="eight parts not beside six"),
        pytest.param((30, 30, 30), 30, True, id="a fourth decode overbooks two parts"),
        pytest.param((30, 30, 30, 30), 30, False, id="a fifth finds none"),
        pytest.param((100,), 20, True, id="two parts of a prefill's may be shared"),
        pytest.param((100, 20), 20, True, id="and two others of them"),
        pytest.param((100,), 30, False, id="three may not"),
        pytest.param((100,) + (20,) * 5, 10, False, id="no part is held three times"),
    ],
)
def test_a_job_fits_into_free_parts_and_two_that_are_held_once(held, percent, fits):
    assert holding(*held).fits(percent) is fits


def test_parts_held_twice_stay_held_when_one_of_both_ends():
    parts = holding(30, 30, 30, 30)
    parts.release(("llm-0", DECODE))
    # Two of its three parts belong to the fourth decode as well: one is free, two can be shared.
    assert parts.fits(30)
    assert not parts.fits(40)


def test_everything_released_is_free_again():
    parts = holding(30, 30, 30, 30)
    for job in parts.jobs:
        parts.release(job)
    parts.take(("a", PREFILL), 100)
    assert parts.jobs == (("a", PREFILL),)
