"""A trace of requests as a file states it, one per line; read strictly, errors name their line.

CSV has the header `time,model,prompt_tokens,output_tokens`; JSONL one object per line with those
keys. Times are seconds from the start of the run, ascending.
"""

import csv
import json
from collections.abc import Collection, Iterator, Mapping
from io import StringIO
from math import isfinite
from typing import Any, Final

from mux_core.errors import SpecError
from mux_core.simulator.arrivals import Arrival
from mux_core.units import ModelName

FIELDS: Final = ("time", "model", "prompt_tokens", "output_tokens")
MOST_TOKENS: Final = 10_000_000


def parse_trace(text: str, *, models: Collection[str], name: str) -> tuple[Arrival, ...]:
    """The arrivals of a trace called `name`; JSONL if it begins with `{`, else CSV.

    Raises SpecError, with the line, for a field that is missing or not a number, for a time that
    is negative or goes back, and for a model that is not among `models`.
    """
    lines = _json_lines(text, name) if text.lstrip().startswith("{") else _csv_lines(text, name)
    found: list[Arrival] = []
    for number, fields in lines:
        where = f"trace {name}, line {number}"
        arrival = _arrival(fields, where, models)
        if found and arrival.at < found[-1].at:
            raise SpecError(f"{where}: time {arrival.at:g} after {found[-1].at:g}; times must "
                            "ascend, sort the file by time")  # fmt: skip
        found.append(arrival)
    if not found:
        raise SpecError(f"trace {name}: no requests in it; at least one line after the header")
    return tuple(found)


def _csv_lines(text: str, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(StringIO(text), skipinitialspace=True)
    header = tuple(reader.fieldnames or ())
    if set(header) != set(FIELDS):
        raise SpecError(f"trace {name}, line 1: header {','.join(header) or '(none)'}; it must be "
                        f"{','.join(FIELDS)}")  # fmt: skip
    try:
        for fields in reader:
            if None in fields:
                raise SpecError(f"trace {name}, line {reader.line_num}: more than {len(FIELDS)} "
                                "fields")  # fmt: skip
            yield reader.line_num, fields
    except csv.Error as error:
        raise SpecError(f"trace {name}, line {reader.line_num}: {error}") from error


def _json_lines(text: str, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise SpecError(f"trace {name}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(fields, dict):
            raise SpecError(f"trace {name}, line {number}: {type(fields).__name__}; one object per "
                            f"line with {', '.join(FIELDS)}")  # fmt: skip
        yield number, fields


def _arrival(fields: Mapping[str, Any], where: str, models: Collection[str]) -> Arrival:
    for key in FIELDS:
        if fields.get(key) in (None, ""):
            raise SpecError(f"{where}: {key} is missing; every line states {', '.join(FIELDS)}")
    model = str(fields["model"])
    if model not in models:
        known = ", ".join(sorted(models)[:8]) + (", ..." if len(models) > 8 else "")
        raise SpecError(f"{where}: model {model} is not in the workload; it has {known}")
    at = _number(fields["time"])
    if at is None or at < 0:
        raise SpecError(f"{where}: time {fields['time']!r}; seconds from the start, at least 0")
    return Arrival(at, ModelName(model), *(_tokens(fields, key, where) for key in FIELDS[2:]))


def _tokens(fields: Mapping[str, Any], key: str, where: str) -> int:
    value = _number(fields[key])
    if value is None or value != int(value) or not 1 <= value <= MOST_TOKENS:
        raise SpecError(f"{where}: {key} {fields[key]!r}; a whole number of at least 1")
    return int(value)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if isfinite(found) else None
