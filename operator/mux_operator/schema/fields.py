"""Builders of OpenAPI v3 fragments as Kubernetes takes them; knows no field of ours.

Every list has `maxItems` and every string `maxLength`: the API server bounds the cost of CEL
rules by them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Schema = dict[str, Any]

DURATION: Final = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
DECIMAL: Final = r"^[0-9]+(\.[0-9]+)?$"
NAME: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One CEL rule. `local` replaces `rule` without a cluster; a `transition` has oldSelf."""

    rule: str
    message: str
    local: str | None = None
    transition: bool = False


def text(
    *,
    doc: str = "",
    pattern: str | None = None,
    enum: Sequence[str] = (),
    longest: int = 253,
    shortest: int = 0,
    default: str | None = None,
) -> Schema:
    schema: Schema = {"type": "string", "maxLength": longest}
    if shortest:
        schema["minLength"] = shortest
    if pattern:
        schema["pattern"] = pattern
    if enum:
        schema["enum"] = list(enum)
    return _finish(schema, doc, default)


def integer(
    *,
    doc: str = "",
    least: int | None = None,
    most: int | None = None,
    enum: Sequence[int] = (),
    default: int | None = None,
) -> Schema:
    schema: Schema = {"type": "integer", "format": "int64"}
    if least is not None:
        schema["minimum"] = least
    if most is not None:
        schema["maximum"] = most
    if enum:
        schema["enum"] = list(enum)
    return _finish(schema, doc, default)


def boolean(*, doc: str = "", default: bool | None = None) -> Schema:
    return _finish({"type": "boolean"}, doc, default)


def duration(*, doc: str = "", default: str | None = None) -> Schema:
    return text(doc=doc, pattern=DURATION, longest=32, default=default)


def quantity(*, doc: str = "", pattern: str = QUANTITY, default: str | None = None) -> Schema:
    """A number from 0 with an optional suffix; whole numbers may be written without quotes.

    `minimum` judges the numbers, `pattern` the texts: each passes over the other's form.
    """
    schema: Schema = {
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "minimum": 0,
        "maxLength": 32,
        "pattern": pattern,
    }
    return _finish(schema, doc, default)


def record(
    properties: Mapping[str, Schema],
    *,
    doc: str = "",
    required: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    default: Mapping[str, Any] | None = None,
) -> Schema:
    schema: Schema = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    if rules:
        schema["x-kubernetes-validations"] = list(rules)
    return _finish(schema, doc, default)


def mapping(values: Schema, *, doc: str = "", most: int = 64) -> Schema:
    schema: Schema = {"type": "object", "additionalProperties": values, "maxProperties": most}
    return _finish(schema, doc, None)


def listing(
    items: Schema, *, most: int, doc: str = "", least: int = 0, keys: Sequence[str] = (),
    distinct: bool = False,
) -> Schema:  # fmt: skip
    """A list; by `keys` a list-map, by `distinct` a set."""
    schema: Schema = {"type": "array", "items": items, "maxItems": most}
    if least:
        schema["minItems"] = least
    if keys:
        schema["x-kubernetes-list-type"] = "map"
        schema["x-kubernetes-list-map-keys"] = list(keys)
    elif distinct:
        schema["x-kubernetes-list-type"] = "set"
    else:
        schema["x-kubernetes-list-type"] = "atomic"
    return _finish(schema, doc, None)


def conditions() -> Schema:
    """`status.conditions` as every Kubernetes tool reads them."""
    item = record(
        {
            "type": text(longest=64),
            "status": text(enum=("True", "False", "Unknown"), longest=8),
            "reason": text(longest=64),
            "message": text(longest=4096),
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": integer(least=0),
        },
        required=("type", "status", "reason", "lastTransitionTime"),
    )
    return listing(item, most=16, keys=("type",))


def _finish(schema: Schema, doc: str, default: object) -> Schema:
    if doc:
        schema["description"] = doc
    if default is not None:
        schema["default"] = default
    return schema
