"""A unit's stream passes event by event, whatever the network does to it."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mux_runtime.gateway.relay import EventSplitter
from mux_runtime.openai.hop import EventReport, headers_of, whole_report
from mux_runtime.openai.responses import DONE

EVENTS = b'data: {"a": 1}\n\ndata: {"b": "x"}\n\n'
STREAM = EVENTS + EventReport(tokens=7).encoded() + DONE


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_any_cut_of_the_bytes_gives_the_same_events(cuts: list[int]) -> None:
    splitter = EventSplitter()
    edges = [0, *cuts, len(STREAM)]
    passed = [splitter.push(STREAM[a:b]) for a, b in pairwise(edges)]
    assert b"".join(passed) == EVENTS + DONE
    assert all(part.endswith(b"\n\n") for part in passed if part), "only whole events"
    assert (splitter.ended, splitter.failed, splitter.tokens) == (True, False, 7)


def test_a_stream_without_its_end_is_not_ended() -> None:
    splitter = EventSplitter()
    assert splitter.push(EVENTS + b"data: [DO") == EVENTS
    assert not splitter.ended


def test_an_error_event_ends_a_stream() -> None:
    splitter = EventSplitter()
    splitter.push(b'data: {"error":{"message":"m"}}\n\n')
    assert (splitter.ended, splitter.failed) == (True, True)


def test_a_whole_answer_s_report_is_read_back() -> None:
    report = whole_report(headers_of(ttft_s=0.25, tokens=3))
    assert (report.ttft_s, report.tokens) == (0.25, 3)
    assert whole_report({}).tokens is None
    assert whole_report({"X-MuxServe-Completion-Tokens": "many"}).tokens is None
