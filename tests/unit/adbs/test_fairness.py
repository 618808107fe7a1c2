"""Under any order of step ends, every member with work is granted within the stated bounds."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from adbs_builders import ToyUnit, member
from mux_core.adbs import Limits, MemberLoad, decode_bound, prefill_bound
from mux_core.engine import Phase

PERCENT = st.sampled_from([10, 30, 50, 80, 100])


@st.composite
def members(draw: st.DrawFn) -> dict[str, MemberLoad]:
    count = draw(st.integers(1, 6))
    return {
        f"m{i}": member(
            f"m{i}", prefill_percent=draw(PERCENT), decode_percent=draw(PERCENT),
            priority=draw(st.integers(0, 2)), quota=10_000,
        )
        for i in range(count)
    }  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    members(),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11), st.booleans()), max_size=150),
)
def test_no_ready_phase_waits_beyond_its_bound(
    loads: dict[str, MemberLoad], turns: int, events: list[tuple[int, int, bool]]
) -> None:
    """Work comes and goes at random; grants to others while a phase is ready are counted."""
    limits = Limits(prefill_turns=turns)
    unit = ToyUnit(dict(loads), limits)
    bounds = {Phase.PREFILL: prefill_bound(len(loads), limits),
              Phase.DECODE: decode_bound(len(loads), limits)}  # fmt: skip
    waited: dict[tuple[str, Phase], int] = {}
    for end, toggle, is_prefill in [*events, *[(i, 0, True) for i in range(400)]]:
        if len(waited) < 400 and (end, toggle) != (0, 0):
            _toggle(unit, toggle, Phase.PREFILL if is_prefill else Phase.DECODE)
        ready = _ready(unit)
        outcome = unit.round()
        assert outcome.grants or unit.flying or not ready, "an idle unit granted nothing"
        done = {(g.model, g.phase) for g in outcome.grants}
        waited = {key: waited.get(key, 0) + len(done) for key in ready - done}
        for key, grants in waited.items():
            assert grants <= bounds[key[1]], (key, grants)
        unit.end(end)


def _toggle(unit: ToyUnit, index: int, phase: Phase) -> None:
    name = sorted(unit.members)[index % len(unit.members)]
    m = unit.members[name]
    if phase is Phase.PREFILL:
        on = 0 if m.waiting else 1
        unit.members[name] = replace(m, waiting=on, waiting_tokens=on, head_rows=on, batch_rows=on)
    else:
        unit.members[name] = replace(m, decoding=1 - m.decoding)


def _ready(unit: ToyUnit) -> set[tuple[str, Phase]]:
    prefill = {(n, Phase.PREFILL) for n, m in unit.members.items() if m.waiting}
    decode = {(n, Phase.DECODE) for n, m in unit.members.items() if m.decoding}
    return (prefill | decode) - set(unit.flying)


@settings(max_examples=60, deadline=None)
@given(members(), st.lists(st.integers(0, 11), min_size=100, max_size=300))
def test_with_everyone_always_busy_every_phase_keeps_being_granted(
    loads: dict[str, MemberLoad], ends: list[int]
) -> None:
    busy = {n: replace(m, waiting=9, waiting_tokens=90, head_rows=1, batch_rows=9,
                       decoding=3, running=3) for n, m in loads.items()}  # fmt: skip
    unit = ToyUnit(busy)
    counts = {(n, p): 0 for n in busy for p in Phase}
    bound = prefill_bound(len(busy), unit.limits) + decode_bound(len(busy), unit.limits)
    grants = 0
    for end in ends * (1 + 3 * bound // len(ends)):
        for grant in unit.round().grants:
            counts[grant.model, grant.phase] += 1
            grants += 1
        unit.end(end)
    if grants > 2 * bound:
        assert min(counts.values()) >= 1, counts


def test_a_wide_decode_is_not_passed_for_ever_by_narrow_ones_of_higher_priority() -> None:
    narrow = {n: member(n, decoding=1, running=1, priority=1) for n in "abc"}
    wide = member("d", decoding=1, running=1, decode_percent=90)
    unit = ToyUnit({**narrow, "d": wide})
    waited = 0
    while ("d", Phase.DECODE) not in unit.flying:
        waited += len(unit.round().grants)
        assert waited <= decode_bound(4, unit.limits)
        if ("d", Phase.DECODE) not in unit.flying:
            unit.end(0)
