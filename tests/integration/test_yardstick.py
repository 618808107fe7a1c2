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
        inside = [took for at, took in measured.samples() if begun <= at < ended]
        assert measured.mean(begun, ended) == pytest.approx(sum(inside) / len(inside))
        assert 0 < min(inside) <= max(inside) < 1
        assert measured.mean(0.0, 1e-9) == 0.0


def test_it_ends_when_its_starter_does():
    process = subprocess.Popen([sys.executable, "-m", PROGRAM],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()
    process.communicate(timeout=30)
    assert process.returncode == 0
