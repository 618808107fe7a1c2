"""The yardstick: a real process that times the same work again and again, and ends with us."""

import subprocess
import sys
import time

import pytest

from mux_runtime.profiling.yardstick import PROGRAM, yardstick

pytestmark = pytest.mark.engine


def test_samples_come_while_it_runs_and_count_where_asked():
    with yardstick() as measured:
        begun = time.monotonic()
        while len(measured.samples()) < 4:
            time.sleep(0.1)
        ended = time.monotonic()
        inside = [sample for sample in measured.samples() if begun <= sample.at < ended]
        assert all(0 < sample.ran_s < 1 for sample in inside)
        taken = inside[-1].machine.since(inside[0].machine).taken
        mean = sum(sample.ran_s for sample in inside) / len(inside)
        assert measured.mean(begun, ended) == pytest.approx(mean * taken)
        assert measured.mean(0.0, 1e-9) == 0.0


def test_it_ends_when_its_starter_does():
    process = subprocess.Popen([sys.executable, "-m", PROGRAM],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()
    process.communicate(timeout=30)
    assert process.returncode == 0
