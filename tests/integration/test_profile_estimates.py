"""The estimator of turns against the simulator, which plays every step under the real policy."""

from dataclasses import replace
from math import inf

import pytest

from mux_cli.validate_figures import relative_error
from mux_cli.validate_models import Stage
from mux_cli.validate_predict import capacity, predicted, simulated
from mux_cli.validate_runs import Run, Window, compare, draw_arrivals
from mux_core.costmodel.measured_pairs import PairInterference, pair_interference
from mux_core.costmodel.sources import ProfileCatalog, choose_costs
from mux_core.llm import Demand, Llm
from mux_core.placement import GpuGroup, GpuNode, KvQuota, Member, Placement, Share, Unit
from mux_core.planning import PlacementProblem
from mux_core.simulator.lengths import LengthShape
from mux_core.units import Bytes, ModelName, NodeName, Percent, UnitId
from profile_builders import model_profile, prefill_s, profile_set, shape

WINDOW = Window(warmup=5, seconds=40, shape=LengthShape.FIXED)
NODE = GpuNode(name=NodeName("n"), gpus=1, memory=Bytes(512 << 20), gpu="cpu")
HALF = Share(prefill=Percent(50), decode=Percent(50))
SMALL = Share(prefill=Percent(50), decode=Percent(30))
UNLIKE = tuple(Share(prefill=Percent(50), decode=Percent(p)) for p in (50, 20, 30))
WHOLE = Share(prefill=Percent(100), decode=Percent(100))


def stage(
    rates, *, share=HALF, shares=None, layers=(4, 2, 4), prompt=32, output=48, profiles=None
):  # fmt: skip
    profiles = profiles or profile_set()
    llms = [
        Llm(name=ModelName(name), weight_bytes=Bytes(1 << 20), geometry=shape(layers=depth),
            demand=Demand(rate=rate, prompt_tokens=prompt, output_tokens=output))
        for (name, rate), depth in zip(rates.items(), layers, strict=False)
    ]  # fmt: skip
    costs = choose_costs(llms, [NODE], ProfileCatalog((profiles,)), {})
    kv = KvQuota(guaranteed=Bytes(16 << 20), limit=Bytes(512 << 20))
    unit = Unit(
        id=UnitId("u"),
        group=GpuGroup(node=NODE.name, gpus=(0,)),
        members=tuple(
            Member(model=llm.name, replica=0, tensor=1, share=own, kv=kv)
            for llm, own in zip(llms, shares or [share] * len(llms), strict=True)
        ),
    )
    return Stage(
        problem=PlacementProblem(now=0.0, nodes=(NODE,), llms=costs.llms),
        placement=Placement(units=(unit,)), costs=costs, rates=rates, yardstick_s=0.0,
        unit_bytes=16384, cpu=ProfileCatalog((profiles,)).cpu,
        interference=PairInterference(decode_by_prefill=0.1, prefill_by_decode=0.1,
                                      decode_by_decode=1.1),
    )  # fmt: skip


def both(found, part):
    """(estimated, simulated) figures at a part of the capacity."""
    load = part * capacity(found, WINDOW.shape)
    asked = draw_arrivals(found, load, 1, WINDOW)
    played = simulated(found, asked, begin=WINDOW.warmup, end=WINDOW.end)
    return predicted(found, load, WINDOW.shape, tuple(played)), played


@pytest.mark.parametrize(
    ("rates", "share"),
    [({"a": 1.0}, HALF), ({"a": 1.0, "b": 0.5}, HALF), ({"a": 1.0, "b": 0.5, "c": 0.5}, HALF),
     ({"a": 1.0, "b": 1.0}, WHOLE), ({"a": 1.0, "b": 0.5, "c": 0.5}, SMALL)],
    ids=["one", "two", "three", "whole slots", "more shares than cores"],
)  # fmt: skip
def test_a_half_full_unit_is_estimated_as_it_plays(rates, share):
    said, played = both(stage(rates, share=share), 0.5)
    for model in rates:
        parts = [figures.goodput / figures.offered for figures in (said[model], played[model])]
        assert relative_error(*parts) == pytest.approx(0, abs=0.05)
        assert relative_error(said[model].tpot.mean, played[model].tpot.mean) == pytest.approx(
            0, abs=0.15)  # fmt: skip
        assert relative_error(said[model].ttft.p99, played[model].ttft.p99) == pytest.approx(
            0, abs=0.4)  # fmt: skip
        assert relative_error(said[model].kv, played[model].kv) == pytest.approx(0, abs=0.25)


def test_half_the_load_on_a_machine_half_as_fast_takes_twice_as_long():
    """Costs are multiplied by what the yardstick says, and none is forgotten."""
    found = replace(stage({"a": 1.0, "b": 0.5, "c": 0.5}, shares=UNLIKE), yardstick_s=0.001)
    load = 0.7 * capacity(found, WINDOW.shape)
    asked = draw_arrivals(found, load, 1, WINDOW)
    said = compare(found, run_of(asked, load, WINDOW, yardstick_s=0.001))
    slow = compare(found, run_of([replace(one, at=2 * one.at) for one in asked], load / 2,
                                 Window(warmup=2 * WINDOW.warmup, seconds=2 * WINDOW.seconds,
                                        shape=WINDOW.shape), yardstick_s=0.002))  # fmt: skip
    assert slow.slower == 2
    # What a scheduler does each second it does more often on the slow one.
    for fast, twice, off in ((said.predicted, slow.predicted, 1e-6),
                             (said.simulated, slow.simulated, 0.05)):  # fmt: skip
        for model, figures in fast.items():
            for latency in ("ttft", "tpot"):
                one, other = getattr(figures, latency), getattr(twice[model], latency)
                assert other.mean == pytest.approx(2 * one.mean, rel=off)


def run_of(asked, load, window, *, yardstick_s):
    return Run(load=load, seed=1, window=window, asked=tuple(asked), observed=dict.fromkeys("abc"),
               errors={}, lag_s=0.0, load_average=1.0, yardstick_s=yardstick_s)  # fmt: skip


@pytest.mark.parametrize("part", [0.5, 0.75])
@pytest.mark.parametrize("layers", [(4, 2, 4), (12, 2, 2)], ids=["like steps", "one is long"])
def test_members_of_unlike_shares_that_all_fit_are_estimated_as_they_play(layers, part):
    """Prefills that need what small shares hold make all of them wait for one another."""
    rates = {"a": 1.0, "b": 1.0, "c": 1.0}
    said, played = both(stage(rates, shares=UNLIKE, layers=layers), part)
    for model in rates:
        assert relative_error(said[model].tpot.mean, played[model].tpot.mean) == pytest.approx(
            0, abs=0.2)  # fmt: skip
        assert relative_error(said[model].ttft.mean, played[model].ttft.mean) == pytest.approx(
            0, abs=0.2)  # fmt: skip


@pytest.mark.parametrize("part", [0.5, 0.75])
def test_cores_that_stay_idle_in_part_are_estimated_as_they_play(part):
    rates = {"a": 1.0, "b": 0.5, "c": 0.5}
    whole = profile_set()
    used = replace(whole, unit=replace(whole.unit, cores_used=0.8))
    found, all_used = (stage(rates, shares=UNLIKE, profiles=one) for one in (used, whole))
    said, played = both(found, part)
    load = part * capacity(found, WINDOW.shape)
    faster = predicted(all_used, load, WINDOW.shape, tuple(rates))
    for model in rates:
        assert relative_error(said[model].tpot.mean, played[model].tpot.mean) == pytest.approx(
            0, abs=0.2)  # fmt: skip
        assert faster[model].tpot.mean < 0.95 * said[model].tpot.mean


def test_prompts_that_wait_are_estimated_to_go_together():
    """Prefills that take as long for four prompts as for one."""

    def constant(batch, tokens):
        return 0.02 + 1e-6 * batch * tokens

    profiles = profile_set(*(model_profile(name, shape(layers=layers), prefill=constant)
                             for name, layers in (("a", 4), ("b", 2))))  # fmt: skip
    rates = {"a": 1.0, "b": 1.0, "c": 1.0}
    said, played = both(stage(rates, shares=UNLIKE, profiles=profiles), 0.95)
    for model in rates:
        for latency in ("tpot", "ttft"):
            means = [getattr(figures, latency).mean for figures in (said[model], played[model])]
            assert relative_error(*means) == pytest.approx(0, abs=0.5)


def test_a_window_at_the_beginning_of_too_much_is_estimated_as_it_plays():
    """What would wait without end in the end has hardly begun to."""
    found = stage({"a": 1.0, "b": 1.0, "c": 1.0}, shares=UNLIKE)
    load = 1.15 * capacity(found, WINDOW.shape)
    asked = draw_arrivals(found, load, 1, WINDOW)
    played = simulated(found, asked, begin=WINDOW.warmup, end=WINDOW.end)
    models = tuple(played)
    early = predicted(found, load, WINDOW.shape, models, (WINDOW.warmup, WINDOW.end))
    late = predicted(found, load, WINDOW.shape, models)
    for model in models:
        assert late[model].ttft.mean == inf > early[model].ttft.mean
        means = [figures[model].tpot.mean for figures in (early, played)]
        assert relative_error(*means) == pytest.approx(0, abs=0.25)
        assert late[model].tpot.mean > 1.2 * early[model].tpot.mean


def test_a_window_long_after_the_beginning_is_what_settles():
    found = stage({"a": 1.0, "b": 0.5, "c": 0.5}, shares=UNLIKE)
    load = 0.7 * capacity(found, WINDOW.shape)
    models = tuple(found.rates)
    late = predicted(found, load, WINDOW.shape, models, (300.0, 400.0))
    for model, settled in predicted(found, load, WINDOW.shape, models).items():
        assert late[model].served == pytest.approx(settled.served, rel=1e-3)
        assert late[model].tpot.mean == pytest.approx(settled.tpot.mean, rel=0.02)
        assert late[model].ttft.mean == pytest.approx(settled.ttft.mean, rel=0.02)


def test_beyond_its_capacity_a_unit_is_said_to_be_full():
    found = stage({"a": 1.0, "b": 1.0})
    load = capacity(found, WINDOW.shape)
    full = predicted(found, 1.3 * load, WINDOW.shape, (ModelName("a"), ModelName("b")))
    assert sum(f.served for f in full.values()) < 0.95 * sum(f.offered for f in full.values())


def test_prompts_alone_can_fill_a_unit():
    found = stage({"a": 1.0}, prompt=512, output=2)
    most = capacity(found, WINDOW.shape)
    alone = prefill_s(1, 512) + 6e-4
    # Beside its own decode host a prefill finds its caches cold: a tenth of itself and .1 ms.
    assert 1 / (1.1 * alone + 1e-4) <= most <= 1 / alone
    full = predicted(found, 2 * most, WINDOW.shape, (ModelName("a"),))[ModelName("a")]
    assert full.served == pytest.approx(most, rel=0.1)


def test_who_prefills_alone_waits_as_in_a_queue_of_its_own():
    """Equal prompts, one server at half its capacity: half a prefill of waiting (M/D/1)."""
    found = stage({"a": 1.0}, share=WHOLE, prompt=512, output=2)
    most = capacity(found, WINDOW.shape)
    idle, half = (predicted(found, part * most, WINDOW.shape, (ModelName("a"),))[ModelName("a")]
                  for part in (0.001, 0.5))  # fmt: skip
    assert half.ttft.mean - idle.ttft.mean == pytest.approx(0.5 * idle.ttft.mean, rel=0.25)


def test_two_shares_above_half_never_run_together():
    def tpot(percent):
        share = Share(prefill=Percent(50), decode=Percent(percent))
        found = stage({"a": 1.0, "b": 1.0}, share=share)
        return predicted(found, 12, WINDOW.shape, (ModelName("a"),))[ModelName("a")].tpot.mean

    # One thread each either way.
    assert tpot(60) > 1.3 * tpot(50)
    assert tpot(60) == pytest.approx(tpot(70), rel=0.01)


def test_a_member_that_is_asked_nothing_costs_the_others_nothing():
    alone = predicted(stage({"a": 1.0}), 10, WINDOW.shape, (ModelName("a"),))
    beside = predicted(stage({"a": 1.0, "b": 0.0}), 10, WINDOW.shape, ("a", "b"))
    assert beside["a"].tpot.mean == pytest.approx(alone["a"].tpot.mean, rel=1e-3)
    assert beside["a"].ttft.mean == pytest.approx(alone["a"].ttft.mean, rel=1e-3)
    assert beside["b"].tpot.mean is None


def test_more_load_is_never_faster():
    found = stage({"a": 1.0, "b": 0.5, "c": 0.5})
    most = capacity(found, WINDOW.shape)
    steps = [predicted(found, part * most, WINDOW.shape, (ModelName("a"),))[ModelName("a")]
             for part in (0.1, 0.3, 0.5, 0.7, 0.9)]  # fmt: skip
    tpots = [figures.tpot.mean for figures in steps]
    assert tpots == sorted(tpots)


def test_factors_of_pairs_are_means_over_what_was_measured():
    found = pair_interference(profile_set().pairs)
    assert found.decode_factor(1.0) == pytest.approx(1.5)
    assert found.prefill_factor(decoding=True) == pytest.approx(1.1)
    assert found.bus_stretch(9.9) == found.decode_by_decode == 1.0


def test_without_pairs_nothing_slows_anything():
    found = pair_interference(())
    assert found.decode_factor(1.0) == found.prefill_factor(decoding=True) == 1.0
