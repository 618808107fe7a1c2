"""Trace files: both forms read alike, and every hole is named with its line."""

import pytest

from mux_core.errors import SpecError
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.traces import parse_trace

CSV = "time,model,prompt_tokens,output_tokens\n0,a,10,20\n1.5,b,1,2\n"
JSONL = (
    '{"time": 0, "model": "a", "prompt_tokens": 10, "output_tokens": 20}\n\n'
    '{"time": 1.5, "model": "b", "prompt_tokens": 1, "output_tokens": 2}\n'
)
HEADER = "time,model,prompt_tokens,output_tokens\n"


def parse(text):
    return parse_trace(text, models=("a", "b"), name="t.csv")


@pytest.mark.parametrize("text", [CSV, JSONL], ids=["csv", "jsonl"])
def test_both_forms_give_the_same_arrivals(text):
    assert parse(text) == (Arrival(0.0, "a", 10, 20), Arrival(1.5, "b", 1, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + "0,a,10\n", "line 2: output_tokens is missing"),
        (HEADER + "0,a,,20\n", "line 2: prompt_tokens is missing"),
        (HEADER + "0,a,10,20,30\n", "line 2: more than 4 fields"),
        (HEADER + "0,a,10,20\n-1,a,10,20\n", "line 3: time '-1'"),
        (HEADER + "nan,a,10,20\n", "line 2: time 'nan'"),
        (HEADER + "soon,a,10,20\n", "line 2: time 'soon'"),
        (HEADER + "2,a,10,20\n1,a,10,20\n", "line 3: time 1 after 2; times must ascend"),
        (HEADER + "0,c,10,20\n", "line 2: model c is not in the workload; it has a, b"),
        (HEADER + "0,a,0,20\n", "line 2: prompt_tokens '0'"),
        (HEADER + "0,a,1.5,20\n", "line 2: prompt_tokens '1.5'"),
        (HEADER + "0,a,inf,20\n", "line 2: prompt_tokens 'inf'"),
        (HEADER, "no requests in it"),
        ("", "line 1: header \\(none\\)"),
        ("when,model,prompt_tokens,output_tokens\n0,a,1,1\n", "line 1: header when,model"),
        ('{"time": 0, "model": "a", "prompt_tokens": 10}\n', "line 1: output_tokens is missing"),
        (JSONL + "{oops\n", "line 4: not JSON"),
        (JSONL + "[1, 2]\n", "line 4: list; one object per line"),
        (JSONL.replace("1.5", "true"), "line 3: time True"),
    ],
)
def test_a_hole_is_named_with_its_line(text, said):
    with pytest.raises(SpecError, match=f"trace t.csv.*{said}"):
        parse(text)
