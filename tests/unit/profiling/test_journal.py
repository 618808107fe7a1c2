"""The journal: nothing measured is lost, nothing half-written is believed."""

import pytest

from mux_core.errors import SpecError
from mux_runtime.profiling.journal import Journal

HEADER = {"format": "j", "models": {"a": "/a"}, "made": {"commit": "abc"}}


def opened(path, header=HEADER):
    return Journal.open(path, header)


def test_measurements_are_there_after_a_kill(tmp_path):
    path = tmp_path / "p.journal"
    journal = opened(path)
    journal.note("decode/a", 0, {"s": 0.5})
    journal.note("decode/a", 1, {"s": 0.25})
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"key": "decode/b", "pass": 0, "va')  # the kill came here
    again = opened(path)
    assert again.found == {("decode/a", 0): {"s": 0.5}, ("decode/a", 1): {"s": 0.25}}
    again.note("decode/b", 0, {"s": 1.0})
    again.close()
    last = opened(path)
    assert last.found["decode/b", 0] == {"s": 1.0}
    last.close()


def test_a_journal_of_something_else_is_not_gone_on_with(tmp_path):
    path = tmp_path / "p.journal"
    opened(path).close()
    before = path.read_bytes()
    with pytest.raises(SpecError, match=r"made\.commit abc, now def"):
        opened(path, {**HEADER, "made": {"commit": "def"}})
    assert path.read_bytes() == before


def test_two_runs_do_not_write_one_journal(tmp_path):
    first = opened(tmp_path / "p.journal")
    with pytest.raises(SpecError, match="another muxserve profile writes it"):
        opened(tmp_path / "p.journal")
    first.close()


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(SpecError, match="cannot be written"):
        opened(tmp_path / "no" / "p.journal")
