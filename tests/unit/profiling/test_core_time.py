"""Seconds of cores, and what a virtual machine's host takes of them."""

from pathlib import Path

import pytest

from mux_runtime import core_time
from mux_runtime.core_time import CoreTime


def test_what_is_stolen_is_added_to_what_ran():
    assert CoreTime(ran_s=40.0, stolen_s=2.0).taken == pytest.approx(1.05)
    assert CoreTime(ran_s=0.0, stolen_s=2.0).taken == 1.0


def test_only_the_time_between_counts():
    before, after = CoreTime(100.0, 50.0), CoreTime(110.0, 51.0)
    assert after.since(before) == CoreTime(10.0, 1.0)


def test_columns_are_those_of_the_kernel(monkeypatch, tmp_path: Path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 3 4000 500 60 7 800 90 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    monkeypatch.setattr(core_time, "_STAT", stat)
    monkeypatch.setattr(core_time, "_TICKS", 100)
    assert CoreTime.now() == CoreTime(ran_s=1.23, stolen_s=8.0)


def test_this_machine_has_run_something():
    assert CoreTime.now().ran_s > 0
