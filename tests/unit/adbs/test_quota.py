"""Quotas move from idle to busy members and never break floor, limit or total."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_core.errors import SpecError
from mux_core.quota import QuotaClaim, adapt, ceiling, claim_weight


def claim(model: str, **changes: float) -> QuotaClaim:
    return QuotaClaim(**{"model": model, "floor": 10, "limit": 1000} | changes)  # type: ignore[arg-type]


def test_idle_members_split_the_rest_evenly() -> None:
    assert adapt([claim("a"), claim("b")], 100) == {"a": 50, "b": 50}


def test_what_is_wanted_goes_before_what_is_idle() -> None:
    quotas = adapt([claim("a", used=10, wanted=60), claim("b")], 100)
    assert quotas == {"a": 80, "b": 20}


def test_two_busy_members_share_by_weight() -> None:
    quotas = adapt([claim("a", wanted=500, weight=3.0), claim("b", wanted=500, weight=1.0)], 100)
    assert quotas == {"a": 70, "b": 30}


def test_what_is_borrowed_holds_as_many_tokens_of_one_member_as_of_another() -> None:
    large, small = (claim_weight(2.0, units_per_token=units) for units in (7.0, 1.0))
    busy = [claim("large", wanted=5000, weight=large), claim("small", wanted=5000, weight=small)]
    assert adapt(busy, 820) == {"large": 10 + 7 * 100, "small": 10 + 100}


def test_a_limit_holds() -> None:
    assert adapt([claim("a", wanted=500, limit=30), claim("b")], 100) == {"a": 30, "b": 70}


def test_an_urgent_member_gets_its_want_down_to_the_others_floors() -> None:
    busy = [claim("a", used=80, wanted=100), claim("b", used=0, wanted=85)]
    assert adapt(busy, 100, urgent="b") == {"a": 15, "b": 85}


def test_adapting_twice_changes_nothing() -> None:
    claims = [claim("a", used=40, wanted=7), claim("b", used=3), claim("c", wanted=90)]
    assert adapt(claims, 200) == adapt(list(reversed(claims)), 200)


def test_floors_beyond_the_pool_are_refused_with_the_figures() -> None:
    with pytest.raises(SpecError, match="2 models is 20 units, the pool has 19"):
        adapt([claim("a"), claim("b")], 19)


def test_the_ceiling_is_what_other_floors_leave() -> None:
    claims = [claim("a"), claim("b", floor=30)]
    assert ceiling("a", claims, 100) == 70
    assert ceiling("a", [claim("a", limit=40), claim("b")], 100) == 40


@st.composite
def claim_sets(draw: st.DrawFn) -> tuple[list[QuotaClaim], int, str | None]:
    n = draw(st.integers(1, 6))
    claims = []
    for i in range(n):
        floor = draw(st.integers(0, 50))
        claims.append(QuotaClaim(
            model=f"m{i}", floor=floor, limit=floor + draw(st.integers(0, 300)),
            used=draw(st.integers(0, 200)), wanted=draw(st.integers(0, 300)),
            weight=draw(st.floats(0, 10)),
        ))  # fmt: skip
    total = sum(c.floor for c in claims) + draw(st.integers(0, 400))
    return claims, total, draw(st.sampled_from([None, "m0"]))


@given(claim_sets())
def test_floor_limit_and_total_always_hold(case: tuple[list[QuotaClaim], int, str | None]) -> None:
    claims, total, urgent = case
    quotas = adapt(claims, total, urgent=urgent)
    assert sum(quotas.values()) <= total
    for c in claims:
        assert c.floor <= quotas[c.model] <= c.limit
