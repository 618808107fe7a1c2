import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_core.errors import SpecError
from mux_core.units import format_bytes, parse_bytes, parse_quantity, parse_seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("2Gi", 2 << 30, id="binary suffix"),
        pytest.param("1.5Mi", 1572864, id="fraction of a binary suffix"),
        pytest.param("512M", 512_000_000, id="decimal suffix"),
        pytest.param("1e3", 1000, id="exponent"),
        pytest.param("12", 12, id="plain"),
        pytest.param("1500m", 1, id="milli rounds down to whole bytes"),
    ],
)
def test_bytes_are_read_as_kubernetes_writes_them(text: str, value: int) -> None:
    assert parse_bytes(text, subject="memory") == value


@pytest.mark.parametrize("text", ["", "Gi", "1Xi", "1 Gi Gi", "--1", "1.2.3"])
def test_what_is_no_quantity_is_refused_by_name(text: str) -> None:
    with pytest.raises(SpecError, match=r"gpu\.static\[0\]\.memory: .* is not a quantity"):
        parse_quantity(text, subject="gpu.static[0].memory")


def test_negative_memory_is_refused() -> None:
    with pytest.raises(SpecError, match="negative"):
        parse_bytes("-1Gi", subject="memory")


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("2s", 2.0), ("1h30m", 5400.0), ("0.5m", 30.0)]
)
def test_durations_carry_their_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text, subject="slo.ttft") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "5 s", "s", "", "5d", "-5s"])
def test_a_duration_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"slo\.ttft: .* is not a duration"):
        parse_seconds(text, subject="slo.ttft")


@given(st.integers(0, 1 << 60))
def test_plain_integers_survive(value: int) -> None:
    assert parse_bytes(str(value), subject="x") == value


def test_bytes_read_well() -> None:
    assert [format_bytes(n) for n in (12, 1536, 3 << 20, 5 << 31)] == [
        "12 B",
        "1.5 KiB",
        "3.0 MiB",
        "10.0 GiB",
    ]
