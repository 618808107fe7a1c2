"""Profile files survive a round trip and broken ones say what is wrong."""

import json

import pytest

from mux_core.costmodel.profile_file import dump_table, load_table
from mux_core.costmodel.table import shipped_tables
from mux_core.errors import SpecError

ROW = {"tensor": 1, "percent": 100, "batch": 1, "tokens": 32, "decode_ms": 9.0, "prefill_ms": 20}
GOOD = {"format": "muxserve-profile", "version": 1, "model": "m", "gpu": "g", "rows": [ROW]}


def test_a_table_survives_the_round_trip():
    table = shipped_tables()["llama-65b"]
    again = load_table(dump_table(table), subject="p.json")
    assert again.tensors == table.tensors
    one, other = again.rows(4, 90), table.rows(4, 90)
    assert [row.decode_s for row in one] == pytest.approx([row.decode_s for row in other])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "is no profile"),
        ({"version": 9}, "version 9; this release reads versions 1 and 6"),
        ({"rows": []}, "rows must be a list"),
        ({"rows": [ROW | {"decode_ms": -1}]}, "rows[0]: decode_ms -1"),
        ({"rows": [ROW | {"percent": 101}]}, "percent 101; 1 to 100"),
        ({"rows": [ROW | {"percent": 50}]}, "not measured at 100%"),
    ],
    ids=["format", "version", "empty", "negative", "percent", "no-whole-gpu"],
)
def test_a_corrupt_file_says_what_is_wrong(change, words):
    with pytest.raises(SpecError) as caught:
        load_table(json.dumps(GOOD | change), subject="p.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("p.json")


def test_text_that_is_not_json_is_refused():
    with pytest.raises(SpecError, match="is not JSON"):
        load_table("{", subject="p.json")
