"""The grid of a profile: what it holds, what it leaves out and says so."""

from mux_core.costmodel.profile_set import percent_of, threads_of
from mux_core.engine import Phase
from mux_runtime.profiling.points import ROOM_TO_GROW, Kind, Subject, make_grid, percents

BIG = Subject(name="big", max_model_len=4096, kv_tokens=1 << 20)
SMALL = Subject(name="small", max_model_len=128, kv_tokens=2000)


def keys(grid, kind):
    return [(p.percent, p.batch, p.tokens) for p in grid.points if p.kind is kind]


def test_every_point_has_a_key_of_its_own():
    grid = make_grid([BIG, SMALL], (50, 100), quick=False, unit=True)
    assert len({point.key for point in grid.points}) == len(grid.points)


def test_a_cpu_is_measured_once_per_number_of_threads():
    assert percents("cpu", 2) == (50, 100)
    assert percents("cpu", 1) == (100,)
    assert [threads_of(percent_of(n, 6), 6) for n in range(1, 7)] == [1, 2, 3, 4, 5, 6]


def test_no_sequence_outgrows_its_model_and_no_batch_its_memory():
    grid = make_grid([SMALL], (50, 100), quick=False, unit=False)
    for _, batch, context in keys(grid, Kind.DECODE):
        assert context + ROOM_TO_GROW <= SMALL.max_model_len
        assert batch * (context + ROOM_TO_GROW) <= SMALL.kv_tokens
    assert max(tokens for _, _, tokens in keys(grid, Kind.PREFILL)) == SMALL.max_model_len - 1
    assert any("KV memory given holds 2000 tokens" in left for left in grid.left_out)


def test_prefill_goes_from_one_token_to_the_models_limit():
    grid = make_grid([BIG], (100,), quick=False, unit=False)
    alone = [tokens for _, batch, tokens in keys(grid, Kind.PREFILL) if batch == 1]
    assert (min(alone), max(alone)) == (1, 4095)


def test_quick_is_coarser_and_says_what_it_left_out():
    whole = make_grid([BIG], (50, 100), quick=False, unit=True)
    quick = make_grid([BIG], (50, 100), quick=True, unit=True)
    assert len(quick.points) < len(whole.points) / 2
    assert any("--quick" in left for left in quick.left_out)


def test_pairs_cover_both_phases_of_every_two_models():
    grid = make_grid([BIG, SMALL], (50, 100), quick=True, unit=False)
    found = [tuple((s.model, s.phase) for s in p.pair) for p in grid.points if p.pair]
    assert found == [
        (("big", Phase.DECODE), ("small", Phase.DECODE)),
        (("big", Phase.PREFILL), ("small", Phase.DECODE)),
        (("small", Phase.PREFILL), ("big", Phase.DECODE)),
        (("big", Phase.PREFILL), ("small", Phase.PREFILL)),
    ]


def test_one_model_is_paired_with_itself_and_one_core_with_nothing():
    assert (
        len([p for p in make_grid([BIG], (50, 100), quick=True, unit=False).points if p.pair]) == 3
    )
    lonely = make_grid([BIG], (100,), quick=True, unit=False)
    assert not [p for p in lonely.points if p.pair]
    assert any("one core" in left for left in lonely.left_out)


def test_the_largest_batch_asked_for_is_measured():
    grid = make_grid([BIG], (100,), quick=False, unit=False, most_batch=24)
    assert max(batch for _, batch, _ in keys(grid, Kind.DECODE)) == 24
