"""What the report says of runs that are written down, and how its charts lay lines out."""

import re
from itertools import pairwise

import pytest

from measure_builders import A_BASE, a_record, overloaded_log, steady_log
from mux_cli.report_page import Report, report_page
from mux_cli.report_svg import Frame, Line, lines, ticks
from mux_cli.simulate_arguments import Window
from mux_cli.simulate_document import Measured, run_document
from mux_core.simulator.measures import tally

WINDOW = Window(warmup=60.0, seconds=600.0, tail=340.0)
GOOD = {"a": steady_log(2.0, 5.0, 1000.0, output=501), "b": steady_log(1.0, 1.0, 1000.0)}
GROWS = GOOD | {"b": overloaded_log(4.0, 3.0, 1000.0)}


def page_of(logs, *, interrupted=False, moves=False, **changes):
    record = a_record(logs, warmup=60.0, until=1000.0, interrupted=interrupted)
    runs = (tally(record, seconds=600.0, bases=dict.fromkeys(logs, A_BASE)),)
    measured = Measured(strategy="default", policy="adbs", window=WINDOW, runs=runs,
                        records=(record,), moves=moves)  # fmt: skip
    told = {"units": [], "view": None, "whole_gpus": 5, "assumptions": ["one"], "command": "x",
            "version": "0"} | changes  # fmt: skip
    return report_page(Report(document=run_document(measured, seconds=1.0), **told))


def verdicts(page):
    return re.findall(r'<p class="verdict (good|bad)">(.*?)</p>', page, re.S)


@pytest.mark.parametrize(
    ("logs", "changes", "kind", "said"),
    [
        (GOOD, {}, "good", "Enough: 3.00 of 3.00 requests per second are served, and no model"),
        (GROWS, {}, "bad", "the queues of b still grew at the end"),
        (GROWS, {"moves": True}, "bad", "b (75%) are left behind"),
        (GOOD, {"interrupted": True}, "bad", "Interrupted: the figures are of what"),
    ],
    ids=["enough", "a queue grows", "left behind", "interrupted"],
)
def test_the_verdict_comes_first(logs, changes, kind, said):
    first, *_ = verdicts(page_of(logs, **changes))
    assert first[0] == kind
    assert said in first[1]


def test_cards_say_what_sharing_saves_where_that_is_known():
    assert "5 with whole GPUs for every model" in page_of(GOOD)
    assert "whole GPUs for every model" not in page_of(GOOD, whole_gpus=None)


def test_the_same_runs_give_the_same_page():
    assert page_of(GOOD) == page_of(GOOD)


def test_what_moved_is_told_only_when_something_did():
    assert "What moved" not in page_of(GOOD)


def test_names_at_lines_ends_do_not_overlap():
    frame = Frame(x_range=(0, 1), y_range=(0, 100))
    close = [Line(label=str(i), points=[(0, 0), (1, 99 + i / 10)], colour=i) for i in range(5)]
    drawn = "".join(lines(frame, close))
    heights = [float(y) for y in re.findall(r'class="name[^>]* y="([\d.]+)"', drawn)]
    assert len(heights) == 5
    assert all(low - high >= 14 for high, low in pairwise(heights))
    assert max(heights) < frame.height


@pytest.mark.parametrize(
    ("ends", "found"),
    [((0, 100), [0, 20, 40, 60, 80, 100]), ((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
     ((60, 62), [60, 60.5, 61, 61.5, 62]), ((3, 3), [3])],
    ids=["percents", "parts", "two seconds", "nothing"],
)  # fmt: skip
def test_axes_carry_round_numbers(ends, found):
    assert ticks(ends) == found
