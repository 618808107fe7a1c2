"""Ids and units of measure as types; quantities and durations as people write them."""

import re
from decimal import Decimal
from typing import Final, NewType

from mux_core.errors import SpecError

ModelName = NewType("ModelName", str)
"""Name of an LLM, unique in its pool: the LLMDeployment's object name."""
UnitId = NewType("UnitId", str)
NodeName = NewType("NodeName", str)
Bytes = NewType("Bytes", int)
Percent = NewType("Percent", int)
"""Share of one GPU's SMs, 1 to 100."""

GIB: Final = 1 << 30
MIB: Final = 1 << 20

_SUFFIX: Final = {
    "": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6),
    "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip
_QUANTITY: Final = re.compile(
    r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:[eE]([+-]?[0-9]{1,2}))?([a-zA-Z]{0,2})"
)
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_quantity(text: str | int | float, *, subject: str) -> Decimal:
    """A Kubernetes quantity (`512Mi`, `0.5`, `250m`) as an exact number.

    Source: k8s.io/apimachinery/pkg/api/resource/quantity.go. Raises SpecError naming `subject`.
    """
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None or match[3] not in _SUFFIX:
        raise SpecError(f"{subject}: {text!r} is not a quantity; write a number with an optional "
                        "suffix, e.g. 512Mi, 2Gi, 0.5")  # fmt: skip
    value = Decimal(match[1]).scaleb(int(match[2] or 0))
    return value * _SUFFIX[match[3]]


def parse_bytes(text: str | int, *, subject: str) -> Bytes:
    """A memory quantity in whole bytes. Raises SpecError when negative or not a quantity."""
    value = parse_quantity(text, subject=subject)
    if value < 0:
        raise SpecError(f"{subject}: {text!r} is negative; memory starts at 0")
    return Bytes(int(value))


def parse_seconds(text: str, *, subject: str) -> float:
    """A duration with its unit (`500ms`, `2s`, `1h30m`) in seconds."""
    parts = _DURATION.findall(str(text))
    if not parts or "".join(number + unit for number, unit in parts) != str(text):
        raise SpecError(f"{subject}: {text!r} is not a duration; write e.g. 500ms, 2s, 10m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_bytes(value: int) -> str:
    """Bytes for people: `1.5 GiB`."""
    size = float(value)
    for suffix in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or suffix == "GiB":
            return f"{size:.0f} {suffix}" if suffix == "B" else f"{size:.1f} {suffix}"
        size /= 1024
    raise AssertionError("unreachable")
