"""All published cases, replayed to the published decimals."""

import pytest

from planner_builders import PUBLISHED_SYSTEMS, assert_published, published_cases


@pytest.mark.parametrize("strategy", PUBLISHED_SYSTEMS)
@pytest.mark.parametrize("case", published_cases())
def test_replay_equals_the_published_estimates(case, strategy):
    assert_published(case, strategy)
