"""What a profile says at a glance."""

from dataclasses import replace

import pytest

from mux_cli.profile_report import bandwidth, fastest_prefill, plot_profiles, summary
from mux_core.costmodel.profile_set import Served, Stretch
from profile_builders import MADE, model_profile, profile_set, shape


def text(profiles):
    return "\n".join(summary(profiles))


def test_the_summary_names_every_model_pair_and_what_was_left_out():
    said = text(profile_set())
    for words in ("a: prefill", "b: prefill", "pair a decode + b prefill: x1.50 and x1.10",
                  "left out: most of it", "0.50 ms per step, 0.100 ms per token",
                  "fit error, each model from the others"):  # fmt: skip
        assert words in said, said


def test_what_a_serving_unit_showed_is_said():
    served = Served(decode=((1.0, 1.5), (8.0, 1.25)), prefill=Stretch(times=1.1, longer_s=2e-4))
    plain = profile_set()
    shown = replace(plain, unit=replace(plain.unit, cores_used=0.9),
                    models=(replace(plain.models[0], served=served), plain.models[1]))  # fmt: skip
    for words in ("90% of the cores' time is used", "a take x1.50 (decode of 1), x1.25 (decode of "
                  "8), x1.10 + 0.20 ms (prefill)"):  # fmt: skip
        assert words in text(shown)
        assert words not in text(plain)


def test_the_knee_of_a_prefill_is_where_it_is_near_its_best():
    rate, knee = fastest_prefill(model_profile("a", shape(), prefill=lambda b, n: 1 + b * n / 64))
    assert rate == pytest.approx(1024 / 17)
    assert knee == 1024  # of 1 + n / 64 s, nothing shorter reaches 90 % of 1024 / 17


def test_bandwidth_counts_weights_and_kv():
    model = model_profile("a", shape(), decode=lambda b, n: 1.0)
    row = max(model.table.rows(1, 100), key=lambda row: row.batch * row.tokens)
    read = model.geometry.weight_bytes + 64 * 512 * model.geometry.kv_bytes_per_token
    assert bandwidth(model, (row,)) == read


def test_a_data_sheet_is_named_where_there_is_one():
    assert "of the data sheet" not in text(profile_set())
    assert "of the data sheet" in text(profile_set(gpu="h100-80gb"))


def test_a_busy_machine_is_said():
    said = text(profile_set(made=replace(MADE, load=7.5)))
    assert "measured beside others: load 7.5 on 2 cores" in said


def test_the_picture_is_drawn(tmp_path):
    plot_profiles(profile_set(), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
