"""MuxServe's rules against the published per-replica rates and against growth by ones."""

import random

import pytest

from mux_core.estimator.muxserve import MuxServeEstimator, Tenant, kv_split, reference_model
from mux_core.estimator.reference import ReferenceUnits, _Growing, grow
from mux_core.estimator.unit import Ask, GroupKind
from mux_core.placement import Share
from mux_core.planners.baselines import highest_rate
from mux_core.units import GIB, Bytes, Percent
from planner_builders import an_llm


def kind(gpus: int) -> GroupKind:
    return GroupKind(gpus=gpus, gpu="a100-80gb", memory=Bytes(80 * GIB))


@pytest.mark.parametrize(
    ("profile", "gpus", "published"),
    [("llama-7b", 1, 9.645), ("llama-13b", 1, 5.615), ("llama-30b", 2, 5.254),
     ("llama-65b", 4, 4.827)],
)  # fmt: skip
def test_a_whole_gpu_replica_serves_what_was_published(profile, gpus, published):
    found = highest_rate(ReferenceUnits(), an_llm("a", profile), kind(gpus))
    assert found == pytest.approx(published, abs=0.0006)


def _by_ones(members):
    for member in members:
        member.batch = 1 if member.cap >= 1 else 0
        member.served = 0.0
    active = [member for member in members if member.batch]
    while True:
        prefill = sum(member.curve.prefills[member.batch] for member in active)
        neediest, least = None, 1.0
        for member in active:
            member.served = member.curve.throughput(member.batch, prefill)
            ratio = member.served / member.tenant.rate
            if ratio < least and member.batch < member.cap:
                neediest, least = member, ratio
        if neediest is None:
            return
        neediest.batch += 1


@pytest.mark.parametrize("seed", range(12))
def test_growth_by_events_ends_where_growth_by_ones_ends(seed):
    units, rng = ReferenceUnits(), random.Random(seed)
    gpus = rng.choice([1, 2, 4])
    profiles = [p for p in ("llama-7b", "llama-13b", "llama-30b")
                if gpus in reference_model(p).table.tensors]  # fmt: skip
    tenants = [
        Tenant(name=str(i), model=reference_model(rng.choice(profiles)), rate=rng.uniform(0.1, 5))
        for i in range(rng.randint(1, 4))
    ]
    room = kv_split(gpus, tenants)

    def fresh():
        return [
            _Growing(t, units.curve(t, gpus, 50), MuxServeEstimator().cap(
                t, units.curve(t, gpus, 50), gb))
            for t, gb in zip(tenants, room, strict=True)
        ]  # fmt: skip

    events, ones = fresh(), fresh()
    grow(events)
    _by_ones(ones)
    assert [m.batch for m in events] == [m.batch for m in ones]
    assert [m.served for m in events] == [m.served for m in ones]


def test_a_share_is_priced_at_the_profiled_one_below_it_and_below_thirty_at_thirty():
    units = ReferenceUnits()
    llm = an_llm("a", rate=5)

    def served(percent):
        share = Share(prefill=Percent(100), decode=Percent(percent))
        return units.outcome(kind(1), [Ask(llm=llm, rate=20, share=share)]).members[0].served

    assert served(55) == served(50) < served(60)
    assert served(25) == served(30) == served(1)


def test_four_members_at_a_quarter_each_are_legal():
    units = ReferenceUnits()
    share = Share(prefill=Percent(100), decode=Percent(25))
    asks = [Ask(llm=an_llm(f"m{i}"), rate=0.5, share=share) for i in range(4)]
    assert units.outcome(kind(2), asks).fits
    assert not units.outcome(kind(1), asks).fits  # four 7B leave a single GPU no KV


def test_the_answer_does_not_depend_on_the_order_of_the_members():
    units = ReferenceUnits()
    asks = [Ask(llm=an_llm(n, p, r), rate=r)
            for n, p, r in (("a", "llama-7b", 3.0), ("b", "llama-13b", 0.7))]  # fmt: skip
    one = units.outcome(kind(1), asks).members
    other = units.outcome(kind(1), asks[::-1]).members
    assert one == other[::-1]
