"""Estimator `default`: what sharing costs, and that it says why it says no."""

from dataclasses import replace
from itertools import permutations
from random import Random

import pytest

from mux_core.costmodel.profile import profile_of
from mux_core.estimator import settled
from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.reference import ReferenceUnits
from mux_core.estimator.unit import Ask, GroupKind
from mux_core.llm import SharingPolicy, Slo
from mux_core.placement import Share
from mux_core.planning import PlanReason
from mux_core.units import GIB, Bytes, Percent
from planner_builders import an_llm


def kind(gpus: int = 1, gpu: str = "a100-80gb") -> GroupKind:
    return GroupKind(gpus=gpus, gpu=gpu, memory=Bytes(80 * GIB))


def ask(name: str, rate: float, profile: str = "llama-7b", slo: Slo | None = None, **sharing):
    llm = an_llm(name, profile, rate, slo=slo, sharing=SharingPolicy(**sharing))
    return Ask(llm=llm, rate=rate)


def one(rate: float, **kwargs):
    return QueueingUnits().outcome(kind(), [ask("a", rate, **kwargs)])


def test_latencies_and_use_rise_with_the_rate():
    slow, fast = one(1.0).members[0], one(6.0).members[0]
    assert slow.utilisation < fast.utilisation
    assert slow.ttft_mean_s < fast.ttft_mean_s < fast.ttft_p99_s
    assert slow.tpot_mean_s < fast.tpot_mean_s < fast.tpot_p99_s


def test_use_is_at_least_the_part_of_what_the_fastest_batch_decodes():
    """Steps of a 65B on most of four GPUs grow faster than their batch beyond 64 sequences."""
    share = Share(prefill=Percent(80), decode=Percent(80))
    large = replace(ask("a", 2.7, "llama-65b"), share=share)
    found = QueueingUnits(enforce_slo=False).outcome(kind(4), [large]).members[0]
    curve = profile_of(large.llm, "a100-80gb", {}).decode_curve(
        tensor=4, percent=80, context=498, overhead_s=5e-5
    )
    fastest = max(batch / curve.at(batch) for batch in range(1, 513))
    assert found.utilisation >= 2.7 * 337 / fastest - 1e-9


def test_steps_that_grow_with_their_batch_make_waits_for_kv_longer(monkeypatch):
    share = Share(prefill=Percent(80), decode=Percent(80))
    large = replace(ask("a", 2.7, "llama-65b"), share=share)
    tight = GroupKind(gpus=4, gpu="a100-80gb", memory=Bytes(62 * GIB))
    waits = []
    for most in (settled.MOST_GROWTH, 0.0):
        monkeypatch.setattr(settled, "MOST_GROWTH", most)
        found = QueueingUnits(enforce_slo=False).outcome(tight, [large]).members[0]
        assert found.utilisation < 1
        waits.append(found.ttft_mean_s)
    assert waits[0] > 2 * waits[1]


def test_company_costs_latency():
    alone = one(3.0).members[0]
    beside = QueueingUnits().outcome(kind(), [ask("a", 3.0), ask("b", 3.0)]).members[0]
    assert beside.tpot_mean_s > alone.tpot_mean_s
    assert beside.ttft_p99_s > alone.ttft_p99_s


def test_a_rate_beyond_headroom_is_refused_with_both_numbers():
    found = one(12.0)
    assert found.refused is PlanReason.SHARING_NOT_BENEFICIAL
    assert "headroom is 90%" in found.message


def test_busy_decodes_together_are_a_bandwidth_conflict():
    found = QueueingUnits().outcome(kind(), [ask(f"m{i}", 3.2) for i in range(3)])
    assert found.refused is PlanReason.BANDWIDTH_CONFLICT


def test_weights_beyond_memory_do_not_fit():
    asks = [ask("a", 0.1, "llama-13b"), ask("b", 0.1, "llama-13b"), ask("c", 0.1, "llama-13b")]
    assert QueueingUnits().outcome(kind(), asks).refused is PlanReason.DOES_NOT_FIT


def test_an_slo_that_the_step_time_breaks_is_refused():
    tight = Slo(tpot_s=0.015)
    assert one(0.2, slo=tight).fits
    found = one(5.0, slo=tight)
    assert not found.fits
    assert "SLO" in found.message


def test_a_relaxed_estimator_reports_attainment_instead_of_refusing():
    found = QueueingUnits(enforce_slo=False).outcome(kind(), [ask("a", 5.0, slo=Slo(tpot_s=0.015))])
    assert found.fits
    assert found.members[0].attainment < 0.5


def test_shares_stay_within_a_whole_gpu_and_within_each_llms_bounds():
    asks = [ask("a", 2.0, max_percent=Percent(40)), ask("b", 0.2, min_percent=Percent(30))]
    shares = [member.share.decode for member in QueueingUnits().outcome(kind(), asks).members]
    assert sum(shares) <= 100
    assert shares[0] <= 40
    assert shares[1] >= 30


@pytest.mark.parametrize("request_gib", [1, 20])
def test_kv_floors_are_kept(request_gib):
    floor = Bytes(request_gib * GIB)
    asks = [ask("a", 4.0), ask("b", 0.01, kv_request=floor)]
    found = QueueingUnits().outcome(kind(), asks)
    assert found.members[1].kv >= floor
    weights = sum(a.llm.weight_bytes for a in asks)
    assert weights + sum(member.kv for member in found.members) <= 80 * GIB


@pytest.mark.parametrize("estimator", [QueueingUnits, ReferenceUnits], ids=["default", "muxserve"])
def test_the_quick_answer_and_the_full_one_agree(estimator):
    draw, units = Random(3), estimator()
    seen = set()
    for _ in range(300):
        gpus = draw.choice([1, 2, 4])
        sizes = ["llama-7b", "llama-13b", "llama-30b"][: 2 if gpus == 1 else 3]
        asks = [ask(f"m{i}", draw.choice([0.1, 0.5, 2, 4]) * draw.random() * gpus,
                    draw.choice(sizes)) for i in range(draw.randint(1, 4))]  # fmt: skip
        carried = units.carries(kind(gpus), asks)
        assert units.outcome(kind(gpus), asks).fits == carried
        seen.add(carried)
    assert seen == {True, False}


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_of_members_decides_nothing(order):
    """What an equal division leaves over goes to one of them, the same one however one asks."""
    asks = [
        ask("m0", 7.16, "llama-13b"),
        ask("m1", 1.88, "llama-30b"),
        ask("m2", 4.04, "llama-30b"),
    ]
    expected = QueueingUnits().carries(kind(4), asks)
    assert QueueingUnits().carries(kind(4), [asks[at] for at in order]) == expected
