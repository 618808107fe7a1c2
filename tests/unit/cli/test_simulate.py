"""Which of the runs asked for count, when Ctrl-C kept some from beginning or from measuring."""

import pytest

from measure_builders import a_log, a_record
from mux_cli.simulate import measurable
from mux_cli.simulate_arguments import Window

WINDOW = Window(warmup=10.0, seconds=100.0, tail=0.0)
WHOLE = a_record({"a": a_log()}, until=110.0)
CUT = a_record({"a": a_log()}, until=50.0, interrupted=True)
WARMING = a_record({"a": a_log()}, until=5.0, interrupted=True)


@pytest.mark.parametrize(
    ("records", "kept", "interrupted"),
    [([WHOLE, WHOLE], 2, False), ([WHOLE, CUT], 2, True), ([WHOLE, None], 1, True),
     ([WHOLE, WARMING], 1, True), ([CUT, None, None], 1, True)],
    ids=["all", "one cut", "one not begun", "one in its warm-up", "only a cut one"],
)  # fmt: skip
def test_runs_that_came_to_the_window_count_and_missing_ones_are_marked(records, kept, interrupted):
    found = measurable(records, WINDOW)
    assert len(found) == kept
    assert any(record.interrupted for record in found) is interrupted


@pytest.mark.parametrize("records", [[None], [WARMING, None]], ids=["none begun", "warming up"])
def test_where_nothing_was_measured_the_command_ends(records, capsys):
    with pytest.raises(KeyboardInterrupt):
        measurable(records, WINDOW)
    assert "nothing was measured" in capsys.readouterr().err
