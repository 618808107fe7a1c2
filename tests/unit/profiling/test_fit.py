"""The fit: exact where the world is as the model says, honest about how far it is off."""

import pytest

from mux_core.costmodel.fit import cross_validate, fit_device
from mux_core.engine import Phase
from mux_core.errors import SpecError
from profile_builders import model_profile, profile_set, shape

FLOPS, BANDWIDTH, PER_LAYER, PER_STEP = 5e10, 1e10, 2e-4, 5e-4
SHAPES = {"a": shape(layers=2), "b": shape(layers=4, hidden=512), "c": shape(layers=8),
          "d": shape(layers=3, hidden=384), "e": shape(layers=6, hidden=128)}  # fmt: skip


def ideal(geometry):
    """Times of a device that is exactly what the model says."""
    body = geometry.layers * (geometry.hidden * geometry.head_dim
                              * (2 * geometry.heads + 2 * geometry.kv_heads)
                              + 3 * geometry.hidden * geometry.intermediate)  # fmt: skip
    head = geometry.hidden * geometry.vocab

    def decode(batch, tokens):
        kv = batch * tokens * geometry.kv_bytes_per_token / BANDWIDTH
        return PER_STEP + PER_LAYER * geometry.layers + 2 * (body + head) * batch / FLOPS + kv

    def prefill(batch, tokens):
        dense = 2 * (body * batch * tokens + head * batch) / FLOPS
        return PER_STEP + PER_LAYER * geometry.layers + dense

    return decode, prefill


def measured(*names):
    return profile_set(*(model_profile(n, SHAPES[n], *ideal(SHAPES[n])) for n in names), pairs=())


def test_rates_of_an_ideal_device_are_found():
    fit = fit_device([measured("a", "b", "c")])
    assert fit.rate(Phase.DECODE, 50, "flops") == pytest.approx(FLOPS, rel=0.02)
    assert fit.rate(Phase.DECODE, 50, "kv") == pytest.approx(BANDWIDTH, rel=0.02)
    assert fit.rate(Phase.PREFILL, 100, "flops") == pytest.approx(FLOPS, rel=0.02)


def test_a_model_that_was_never_measured_is_predicted_from_the_others():
    fit = fit_device([measured("a", "c")])
    unseen = shape(layers=5)
    decode, prefill = ideal(unseen)
    for batch, tokens in ((1, 64), (8, 300), (64, 512)):
        found = fit.seconds(unseen, Phase.DECODE, percent=50, batch=batch, tokens=tokens)
        assert found == pytest.approx(decode(batch, tokens), rel=0.05)
    found = fit.seconds(unseen, Phase.PREFILL, percent=100, batch=1, tokens=200)
    assert found == pytest.approx(prefill(1, 200), rel=0.05)


def test_cross_validation_finds_no_error_where_there_is_none():
    result = cross_validate([measured(*SHAPES)])
    assert result.how == "each model from the others"
    assert result.errors[0].region == "all"
    assert result.errors[0].median < 0.05
    assert sum(e.steps for e in result.errors[1:]) == result.errors[0].steps


def test_a_model_unlike_the_others_shows_in_the_error():
    decode, prefill = ideal(SHAPES["c"])
    odd = model_profile("c", SHAPES["c"], lambda b, t: 3 * decode(b, t), prefill)
    fine = [model_profile(n, SHAPES[n], *ideal(SHAPES[n])) for n in "abde"]
    result = cross_validate([profile_set(*fine, odd, pairs=())])
    assert max(e.median for e in result.errors if "decode" in e.region) > 0.3
    assert max(e.median for e in result.errors if "prefill" in e.region) < 0.05


def test_one_model_is_validated_against_parts_of_itself():
    assert "4 parts" in cross_validate([measured("b")]).how


def test_no_rate_is_negative():
    fit = fit_device([measured("a", "b")])
    assert all(rate >= 0 for rates in fit.rates.values() for rate in rates)


def test_a_share_that_was_not_measured_is_named():
    fit = fit_device([measured("a")])
    with pytest.raises(SpecError, match=r"decode at 30% was not measured.*50, 100"):
        fit.seconds(SHAPES["a"], Phase.DECODE, percent=30, batch=1, tokens=1)


def test_profiles_of_two_devices_make_no_fit():
    with pytest.raises(SpecError, match="profiles of cpu, h100-80gb"):
        fit_device([measured("a"), profile_set(gpu="h100-80gb")])
