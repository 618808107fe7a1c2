"""Validates manifests where there is no API server, by the same schema and the same rules.

What the API server refuses is refused here, with the same words for the CEL rules; `file://` is
taken here and refused there.
"""

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import jsonschema

from mux_core.errors import SpecError
from mux_operator.schema.cel import holds
from mux_operator.schema.fields import Rule, Schema
from mux_operator.schema.kinds import API_VERSION, KINDS, Kind

Manifest = dict[str, Any]


def validate(manifest: object, *, old: Manifest | None = None) -> None:
    """Raises SpecError naming object, field, value and fix when the manifest is not valid.

    `old` is the manifest it replaces, for the rules on what may change.
    """
    kind, document = _head(manifest)
    subject = f"{kind.kind} {document['metadata']['name']}"
    problems = list(_structure(kind, document))
    if not problems:
        before = with_defaults(old) if old is not None else None
        problems = list(_rules(kind.schema, with_defaults(document), before, ""))
    if problems:
        raise SpecError("; ".join(f"{subject}: {problem}" for problem in problems))


def with_defaults(manifest: Manifest) -> Manifest:
    """A copy with the schema's defaults filled in, as the API server stores it."""
    return _filled(KINDS[manifest["kind"]].schema, deepcopy(manifest))  # type: ignore[no-any-return]


def _head(manifest: object) -> tuple[Kind, Manifest]:
    if not isinstance(manifest, dict):
        raise SpecError(f"manifest: must be an object, is {type(manifest).__name__}")
    if manifest.get("apiVersion") != API_VERSION:
        raise SpecError(f"manifest: apiVersion is {manifest.get('apiVersion')!r}; "
                        f"use {API_VERSION}")  # fmt: skip
    kind = KINDS.get(str(manifest.get("kind")))
    if kind is None:
        raise SpecError(f"manifest: kind is {manifest.get('kind')!r}; use one of {sorted(KINDS)}")
    metadata = manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        raise SpecError(f"{kind.kind}: metadata.name is missing; give the object a name")
    return kind, manifest


def _structure(kind: Kind, document: Manifest) -> Iterator[str]:
    name = document["metadata"]["name"]
    if not _dns_subdomain(name):
        yield (f"metadata.name: Invalid value: {name!r}: use lower case letters, digits, '-' "
               "and '.', starting and ending with a letter or digit")  # fmt: skip
    for error in sorted(_validator(kind.kind).iter_errors(document), key=lambda e: str(e.path)):
        yield _explained(error)


def _dns_subdomain(name: str) -> bool:
    inner = name.replace("-", "").replace(".", "")
    return (
        len(name) <= 253 and inner.isascii() and inner.isalnum() and inner == inner.lower()
        and name[0] not in "-." and name[-1] not in "-."
    )  # fmt: skip


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(_json_schema(KINDS[kind].schema))


def _json_schema(schema: Schema) -> dict[str, Any]:
    """The structural schema as strict JSON Schema: unknown fields refused."""
    kept = {k: v for k, v in schema.items() if not k.startswith("x-") and k != "format"}
    if "properties" in schema:
        kept["properties"] = {k: _json_schema(v) for k, v in schema["properties"].items()}
        kept["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = _json_schema(schema["additionalProperties"])
    if "items" in schema:
        kept["items"] = _json_schema(schema["items"])
        if schema.get("x-kubernetes-list-type") == "set":
            kept["uniqueItems"] = True
    return kept


def _explained(error: jsonschema.ValidationError) -> str:
    where = _dotted(error.absolute_path)
    value: Any = error.instance
    schema: Any = error.schema
    wanted: Any = error.validator_value
    match error.validator:
        case "additionalProperties":
            known = sorted(schema.get("properties", ()))
            unknown = sorted(set(value) - set(known))[0]
            path = f"{where}.{unknown}" if where else unknown
            return f'unknown field "{path}"; known here: {", ".join(known)}'
        case "required":
            missing = next(name for name in wanted if name not in value)
            return f"{where + '.' if where else ''}{missing}: Required value"
        case "enum":
            allowed = ", ".join(f'"{item}"' for item in wanted)
            return f'{where}: Unsupported value: "{value}": supported values: {allowed}'
        case "type" | "anyOf":
            kind = schema.get("type", "integer,string")
            return f"{where}: Invalid value: {value!r}: must be of type {kind}"
        case "pattern":
            return f"{where}: Invalid value: {value!r}: should match '{wanted}'"
        case "minimum":
            return (f"{where}: Invalid value: {value}: should be greater than or equal to "
                    f"{wanted}")  # fmt: skip
        case "maximum":
            return (f"{where}: Invalid value: {value}: should be less than or equal to "
                    f"{wanted}")  # fmt: skip
    return f"{where}: {error.message}"


def _dotted(path: Any) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _filled(schema: Schema, value: Any) -> Any:
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = deepcopy(child["default"])
            if name in value:
                value[name] = _filled(child, value[name])
    elif isinstance(value, list) and "items" in schema:
        return [_filled(schema["items"], item) for item in value]
    return value


def _rules(schema: Schema, value: Any, old: Any, where: str) -> Iterator[str]:
    """Every broken rule below `schema`; list-map keys given twice too."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield from _broken(rule, value, old, where)
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                before = old.get(name) if isinstance(old, dict) else None
                yield from _rules(child, value[name], before, f"{where}.{name}".lstrip("."))
    elif isinstance(value, list):
        yield from _twice(schema, value, where)
        for index, item in enumerate(value):
            yield from _rules(schema["items"], item, None, f"{where}[{index}]")


def _broken(rule: Rule, value: Any, old: Any, where: str) -> Iterator[str]:
    if rule.transition and old is None:
        return
    if not holds(rule, value, old=old):
        yield f"{where + ': ' if where else ''}{rule.message}"


def _twice(schema: Schema, value: list[Any], where: str) -> Iterator[str]:
    keys = schema.get("x-kubernetes-list-map-keys", ())
    seen: set[tuple[Any, ...]] = set()
    for index, item in enumerate(value):
        key = tuple(item.get(name) for name in keys)
        if keys and key in seen:
            yield f"{where}[{index}]: Duplicate value: {dict(zip(keys, key, strict=True))}"
        seen.add(key)
