"""Whatever the loads are, a round never lends what is not there or what others are guaranteed."""

from hypothesis import given
from hypothesis import strategies as st

from adbs_builders import decide, member
from mux_core.adbs import Limits, MemberLoad, Round
from mux_core.engine import Phase


@st.composite
def loaded(draw: st.DrawFn, name: str) -> MemberLoad:
    decoding, waiting = draw(st.integers(0, 8)), draw(st.integers(0, 5))
    floor, head = draw(st.integers(0, 60)), draw(st.integers(0, 9))
    return member(
        name, decoding=decoding, running=decoding + draw(st.integers(0, 2)), waiting=waiting,
        waiting_tokens=waiting * 9, head_rows=head if waiting else 0,
        batch_rows=head + draw(st.integers(0, 20)) if waiting else 0,
        decode_rows=draw(st.integers(0, decoding)), row_units=draw(st.integers(1, 5)),
        floor=floor, quota=floor + draw(st.integers(0, 80)), used=draw(st.integers(0, 120)),
        prefill_percent=draw(st.sampled_from([10, 60])), decode_percent=10,
        prefill_idle=draw(st.booleans()), decode_idle=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def units(draw: st.DrawFn) -> tuple[list[MemberLoad], int]:
    count = draw(st.integers(1, 5))
    return [draw(loaded(f"m{i}")) for i in range(count)], draw(st.integers(0, 150))


def taken(outcome: Round, members: list[MemberLoad]) -> dict[str, int]:
    units = {m.model: 0 for m in members}
    sizes = {m.model: m.row_units for m in members}
    for grant in outcome.grants:
        units[grant.model] += grant.rows * sizes[grant.model]
    return units


@given(units())
def test_leases_respect_pool_quota_and_the_floors_of_others(
    case: tuple[list[MemberLoad], int],
) -> None:
    members, free = case
    outcome = decide(*members, free=free)
    gained = taken(outcome, members)
    assert sum(gained.values()) <= free
    for m in members:
        assert gained[m.model] == 0 or m.used + gained[m.model] <= m.quota
        if m.used + gained[m.model] > m.floor and gained[m.model]:
            others = sum(max(0, o.floor - o.used - gained[o.model])
                         for o in members if o is not m)  # fmt: skip
            assert sum(gained.values()) + others <= free, "a borrower took a guaranteed unit"


@given(units())
def test_a_granted_step_can_do_something(case: tuple[list[MemberLoad], int]) -> None:
    members, free = case
    by_model = {m.model: m for m in members}
    for grant in decide(*members, free=free).grants:
        m = by_model[grant.model]
        if grant.phase is Phase.PREFILL:
            assert m.prefill_idle
            assert m.head_rows <= grant.rows <= m.batch_rows
        else:
            assert m.decode_idle
            assert grant.rows <= m.decode_rows
            assert m.decoding + grant.rows > m.decode_rows


@given(units())
def test_the_order_of_members_does_not_matter(case: tuple[list[MemberLoad], int]) -> None:
    members, free = case
    assert decide(*members, free=free) == decide(*reversed(members), free=free)


@given(units())
def test_a_preemption_takes_from_the_stuck_one_or_from_who_is_beyond_its_quota(
    case: tuple[list[MemberLoad], int],
) -> None:
    members, free = case
    by_model = {m.model: m for m in members}
    for preempt in decide(*members, free=free, limits=Limits(reclaim_rounds=0)).preempts:
        m = by_model[preempt.model]
        assert preempt.units >= 1
        assert m.running > 1 or m.used > m.quota
