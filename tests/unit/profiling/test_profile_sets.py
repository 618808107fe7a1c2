"""Profile files of several models: what is written is read, and found by shape."""

import json
from dataclasses import replace

import pytest

from mux_core.costmodel.profile import Profile
from mux_core.costmodel.profile_file import dump_profiles, load_profiles, load_table
from mux_core.costmodel.profile_set import Served, Stretch, planning_table, threads_of
from mux_core.errors import SpecError
from mux_runtime.brain.hosts import threads
from profile_builders import MADE, decode_s, model_profile, profile_set, shape


def test_a_profile_reads_back_as_it_was_written():
    served = replace(
        model_profile("a", shape()),
        served=Served(decode=((1.0, 1.5), (8.0, 1.2)), prefill=Stretch(times=1.4), together=True),
    )
    before = profile_set(served, model_profile("b", shape(layers=2)))  # fmt: skip
    after = load_profiles(dump_profiles(before), subject="p.json")
    assert after.made == before.made
    assert after.left_out == before.left_out
    assert after.unit == before.unit
    assert [m.geometry for m in after.models] == [m.geometry for m in before.models]
    assert after.pairs[0].sides == before.pairs[0].sides
    assert after.pairs[0].slowdowns == pytest.approx((1.5, 1.1))
    for one, other in zip(after.models, before.models, strict=True):
        assert (one.host_bytes, one.served) == (other.host_bytes, other.served)
        for key, rows in other.table.cells.items():
            found = one.table.cells[key]
            assert [r.decode_s for r in found] == pytest.approx([r.decode_s for r in rows])


def test_a_model_is_found_by_its_shape_whatever_its_name_and_length():
    profiles = profile_set()
    found = profiles.find(shape(layers=2, max_model_len=512))
    assert found is not None
    assert found.name == "b"
    assert profiles.find(shape(layers=3)) is None


def test_one_table_is_read_from_a_profile_of_one_model_only():
    alone = dump_profiles(profile_set(model_profile("a", shape())))
    assert load_table(alone, subject="p.json").model == "a"
    with pytest.raises(SpecError, match=r"holds 2 models.*--profiles"):
        load_table(dump_profiles(profile_set()), subject="p.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2; this release reads versions 1 and 6"),
        ({"version": 1}, "version 1 says neither device nor shape"),
        ({"format": "x"}, "is no profile"),
        ({"made": {"device": "x"}}, "is damaged"),
        ({"models": [{"model": "a"}]}, "is damaged"),
        ({"pairs": 7}, "is damaged"),
    ],
)
def test_a_damaged_file_says_what_is_wrong_and_what_to_do(change, words):
    document = json.loads(dump_profiles(profile_set())) | change
    with pytest.raises(SpecError, match=words):
        load_profiles(json.dumps(document), subject="p.json")


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 8, 64])
def test_threads_of_a_share_are_those_the_runtime_gives(cores):
    assert [threads_of(p, cores) for p in range(1, 101)] == [
        threads(p, cores) for p in range(1, 101)
    ]


def test_on_a_cpu_a_share_between_two_numbers_of_threads_costs_what_the_lower_does():
    slow_alone = model_profile("a", shape(), decode=lambda b, t: decode_s(b, t) * 3)
    profile = Profile(planning_table(slow_alone, MADE, "cpu"))
    at = [profile.decode_s(tensor=1, percent=p, batch=4, context=64) for p in (1, 30, 50, 74)]
    assert at == pytest.approx([3 * decode_s(4, 64)] * 4)


def test_on_a_gpu_shares_stay_as_measured():
    found = model_profile("a", shape())
    assert planning_table(found, MADE, "h100-80gb") is found.table
