"""The unit spec: the versioned document by which operator and runtime meet.

It says what is wanted, never what happened. The operator delivers it as a file (a ConfigMap) at
start and by gRPC afterwards; `generation` grows with every change of one unit's spec. Unknown
fields are refused, so that an old runtime never half-obeys a new operator.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Final

from mux_core.errors import SpecError

VERSION: Final = 1
UNIT_BYTES: Final = 16384
"""Default size of a head unit."""


class Device(StrEnum):
    """What a unit runs on."""

    CUDA = "CUDA"
    CPU = "CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpec:
    """One LLM in a unit.

    `path` is the checkpoint folder as the unit sees it. `port` serves this model alone (0: none).
    Percents are of one GPU. `kv_guaranteed_bytes` and `kv_limit_bytes` are of one GPU (rank).
    `rate` is the demand the plan counted on, requests/s, `concurrency` how many of them decode at a
    time (0: not predicted). SLO targets absent mean best effort.
    """

    model: str
    served_name: str
    path: str
    port: int = 0
    replica: int = 0
    tensor: int = 1
    engine: str = "Torch"
    dtype: str = "Auto"
    max_model_len: int | None = None
    prefill_percent: int = 100
    decode_percent: int = 100
    kv_guaranteed_bytes: int = 0
    kv_limit_bytes: int = 1 << 60
    rate: float = 0.0
    concurrency: float = 0.0
    priority: int = 0
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    drain_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSpec:
    """One unit: its GPU group and its members, by model name.

    `memory_bytes` is what weights and KV together may take on each of the `gpus` GPUs.
    `incarnation` counts the pods (or process trees) that carried this unit.
    """

    unit: str
    pool: str
    namespace: str
    generation: int
    incarnation: int
    device: Device
    gpus: int
    memory_bytes: int
    members: tuple[MemberSpec, ...] = ()
    unit_bytes: int = UNIT_BYTES
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise SpecError(
                f"unit spec {self.unit}: version {self.version}, this runtime reads "
                f"{VERSION}; use the runtime image of the operator's release"
            )
        for what, names in (("model", [m.model for m in self.members]),
                            ("served name", [m.served_name for m in self.members])):  # fmt: skip
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise SpecError(
                    f"unit spec {self.unit}: {what} {twice[0]!r} given twice; once each"
                )
        if self.memory_bytes < 1 or self.unit_bytes < 1 or self.gpus < 1:
            raise SpecError(f"unit spec {self.unit}: memory_bytes, unit_bytes and gpus start at 1")

    def member(self, model: str) -> MemberSpec | None:
        return next((member for member in self.members if member.model == model), None)


def to_json(spec: UnitSpec) -> str:
    """The document; the same spec gives the same bytes."""
    return json.dumps(asdict(spec), sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> UnitSpec:
    """Reads the document. Raises SpecError naming the field that is wrong and what it may be."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise SpecError(f"unit spec: not JSON ({error})") from error
    top = _checked(document, UnitSpec, where="unit spec")
    if not isinstance(top.get("members", []), list):
        raise SpecError("unit spec: members must be a list")
    members = tuple(
        MemberSpec(**_checked(item, MemberSpec, where=f"unit spec members[{index}]"))
        for index, item in enumerate(top.get("members", []))
    )
    try:
        device = Device(top["device"])
    except ValueError:
        raise SpecError(f"unit spec: device {top['device']!r}; use CPU or CUDA") from None
    return UnitSpec(**{**top, "members": members, "device": device})


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,), "int": (int,), "float": (int, float), "Device": (str,),
    "int | None": (int, type(None)), "float | None": (int, float, type(None)),
}  # fmt: skip


def _checked(
    document: object, kind: type[UnitSpec] | type[MemberSpec], *, where: str
) -> dict[str, Any]:
    """`document` as keyword arguments of `kind`, every field known and of its type."""
    if not isinstance(document, dict):
        raise SpecError(f"{where}: must be an object, is {type(document).__name__}")
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise SpecError(
            f"{where}: unknown field {unknown[0]!r}; this runtime knows {sorted(known)}"
        )
    for name, field in known.items():
        required = field.default is MISSING
        if name not in document:
            if required:
                raise SpecError(f"{where}: field {name!r} is missing")
            continue
        type_name = (
            field.type
            if isinstance(field.type, str)
            else getattr(field.type, "__name__", str(field.type))
        )
        allowed = _TYPES.get(str(type_name), ())
        value = document[name]
        if allowed and (not isinstance(value, allowed) or isinstance(value, bool)):
            raise SpecError(f"{where}: {name} is {value!r}; must be {type_name}")
    return dict(document)
