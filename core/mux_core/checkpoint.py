"""What a checkpoint's files say: config.json as a typed value, and the result of inspecting one.

Reads dictionaries and text, never a file. One reading serves the operator, which needs the
geometry, and the engine, which needs the numerics as well: what one accepts the other can run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Final

from mux_core.errors import SpecError, UnsupportedModel
from mux_core.llm import Dtype, ModelGeometry
from mux_core.reasons import Reason
from mux_core.units import Bytes

SUPPORTED: Final[Mapping[str, str]] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Architectures of the torch engine, and the `model_type` each has in config.json."""

MAX_REPORT_BYTES: Final = 4096
"""A container's termination message holds no more."""

_MOE_FIELDS: Final = (
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "moe_intermediate_size",
)
_MLA_FIELDS: Final = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim")
_NUMBERED_DTYPES: Final = tuple(str(dtype) for dtype in Dtype)


class RopeKind(StrEnum):
    """How rotary frequencies are stretched."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary embedding; the frequency factors and `original_len` count for LLAMA3 alone."""

    theta: float
    kind: RopeKind = RopeKind.DEFAULT
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_len: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One config.json: the shape, and the numerics that only an engine needs."""

    geometry: ModelGeometry
    rope: Rope
    norm_eps: float
    output_bias: bool = False
    mlp_bias: bool = False
    eos_token_ids: tuple[int, ...] = ()


def read_geometry(config: Mapping[str, object]) -> ModelGeometry:
    """The shape named by a config.json. Raises UnsupportedModel naming field and value."""
    return read_config(config).geometry


def read_config(config: Mapping[str, object]) -> ModelConfig:
    """A config.json as a value. Raises UnsupportedModel for what no engine here runs."""
    architecture = _architecture(config)
    _refuse_other_kinds(config, architecture)
    _refuse_sliding_window(config)
    qwen2 = architecture == "Qwen2ForCausalLM"
    qwen3 = architecture == "Qwen3ForCausalLM"
    # Qwen2 has Q, K, V biases without saying so; its output projection never has one.
    attention_bias = _flag(config, "attention_bias") and architecture != "MistralForCausalLM"
    return ModelConfig(
        geometry=_geometry(config, architecture, qkv_bias=qwen2 or attention_bias, qk_norm=qwen3),
        rope=_rope(config),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        output_bias=attention_bias and not qwen2,
        mlp_bias=_flag(config, "mlp_bias") and architecture == "LlamaForCausalLM",
        eos_token_ids=read_eos(config),
    )


def read_eos(config: Mapping[str, object]) -> tuple[int, ...]:
    """Token ids that end a text, of a config.json or generation_config.json; () if none."""
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return tuple(sorted({x for x in ids if isinstance(x, int) and not isinstance(x, bool)}))


def _geometry(
    config: Mapping[str, object], architecture: str, *, qkv_bias: bool, qk_norm: bool
) -> ModelGeometry:
    heads = _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    return ModelGeometry(
        architecture=architecture,
        layers=_size(config, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_size(config, "intermediate_size"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_head_dim(config, architecture, hidden, heads),
        vocab=_size(config, "vocab_size"),
        max_model_len=_size(config, "max_position_embeddings"),
        dtype=_dtype(config),
        tied_embeddings=_flag(config, "tie_word_embeddings"),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )


def _architecture(config: Mapping[str, object]) -> str:
    named = config.get("architectures")
    if isinstance(named, list) and named:
        if named[0] in SUPPORTED:
            return str(named[0])
        raise UnsupportedModel(f"config.json: architectures is {_shown(named)}; supported are "
                               f"{', '.join(SUPPORTED)}")  # fmt: skip
    kind = config.get("model_type")
    for architecture, model_type in SUPPORTED.items():
        if kind == model_type:
            return architecture
    raise UnsupportedModel(f"config.json: architectures is missing, model_type is {_shown(kind)}; "
                           f"supported are {', '.join(SUPPORTED.values())}")  # fmt: skip


def _refuse_other_kinds(config: Mapping[str, object], architecture: str) -> None:
    """Quantised weights, experts, latent attention: none of them fits a dense layer."""
    for name in ("quantization_config", "compression_config"):
        if config.get(name):
            raise _unsupported(
                name, config[name], "unquantised weights (float32, bfloat16, float16)"
            )
    for name in _MOE_FIELDS:
        if config.get(name):
            raise _unsupported(name, config[name], "dense models without experts")
    for name in _MLA_FIELDS:
        if config.get(name):
            raise _unsupported(name, config[name], "attention with K and V per head")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise _unsupported("hidden_act", activation, "silu")
    if architecture == "MistralForCausalLM" and config.get("attention_bias"):
        raise _unsupported("attention_bias", True, "Mistral without biases")


def _refuse_sliding_window(config: Mapping[str, object]) -> None:
    """A window counts when it is shorter than what the model may be asked to read."""
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and any(kind != "full_attention" for kind in kinds):
        other = next(kind for kind in kinds if kind != "full_attention")
        raise _unsupported("layer_types", other, "full_attention in every layer")
    if not window or config.get("use_sliding_window") is False:
        return
    length = _size(config, "max_position_embeddings")
    if isinstance(window, int) and window < length:
        raise _unsupported("sliding_window", window,
                           f"null, or at least max_position_embeddings ({length})")  # fmt: skip


def _head_dim(config: Mapping[str, object], architecture: str, hidden: int, heads: int) -> int:
    """Explicit, or as transformers derives it; Qwen3's default is 128 whatever its width."""
    if config.get("head_dim"):
        return _size(config, "head_dim")
    if architecture == "Qwen3ForCausalLM" and "head_dim" not in config:
        return 128
    if hidden % heads:
        raise _unsupported("hidden_size", hidden, f"a multiple of num_attention_heads ({heads}), "
                           "or an explicit head_dim")  # fmt: skip
    return hidden // heads


def _dtype(config: Mapping[str, object]) -> Dtype:
    """transformers 5 writes `dtype`, earlier ones `torch_dtype`; without either, float32."""
    value = config.get("dtype") or config.get("torch_dtype") or "float32"
    name = str(value).removeprefix("torch.")
    if name not in _NUMBERED_DTYPES:
        raise _unsupported("dtype", value, ", ".join(_NUMBERED_DTYPES))
    return Dtype(name)


def _rope(config: Mapping[str, object]) -> Rope:
    """`rope_parameters` (transformers 5), else `rope_theta` and `rope_scaling`."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    if not isinstance(parameters, dict):
        raise _unsupported(name, parameters, "an object with rope_type")
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if kind not in tuple(RopeKind):
        raise _unsupported(f"{name}.rope_type", kind, ", ".join(RopeKind))
    if (
        _number(parameters, "partial_rotary_factor", _number(config, "partial_rotary_factor", 1))
        != 1
    ):
        raise _unsupported("partial_rotary_factor", "below 1", "1")
    theta = _number(parameters, "rope_theta", _number(config, "rope_theta", 10000.0))
    if kind == RopeKind.DEFAULT:
        return Rope(theta=theta)
    if "factor" not in parameters:
        raise _unsupported(f"{name}.factor", None, f"a number, as rope_type {kind} needs it")
    return Rope(
        theta=theta,
        kind=RopeKind(kind),
        factor=_number(parameters, "factor", 1.0),
        low_freq_factor=_number(parameters, "low_freq_factor", 1.0),
        high_freq_factor=_number(parameters, "high_freq_factor", 4.0),
        original_len=_size({**config, **parameters}, "original_max_position_embeddings",
                           _size(config, "max_position_embeddings")),
    )  # fmt: skip


def _size(config: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _unsupported(name, value, "a whole number of at least 1")
    return value


def _number(config: Mapping[str, object], name: str, default: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _unsupported(name, value, "a number")
    return float(value)


def _flag(config: Mapping[str, object], name: str) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise _unsupported(name, value, "true or false")
    return bool(value)


def _unsupported(name: str, value: object, supported: str) -> UnsupportedModel:
    return UnsupportedModel(f"config.json: {name} is {_shown(value)}; supported: {supported}")


def _shown(value: object) -> str:
    """A value for a message, cut where it would drown it."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else f"{text[:117]}..."


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A checkpoint that can be served. `digest` tells its files from another revision's."""

    geometry: ModelGeometry
    weight_bytes: Bytes
    chat_template: bool
    digest: str

    @property
    def max_model_len(self) -> int:
        return self.geometry.max_model_len


@dataclass(frozen=True, slots=True, kw_only=True)
class Unresolved:
    """A checkpoint that cannot be served; `reason` is one of condition ModelResolved."""

    reason: Reason
    message: str


def to_json(found: ResolvedModel | Unresolved) -> str:
    """One line of JSON, under `MAX_REPORT_BYTES` however long the message is."""
    if isinstance(found, ResolvedModel):
        document = {"ok": True, **asdict(found), "dtype": str(found.geometry.dtype),
                    "max_model_len": found.max_model_len}  # fmt: skip
        return json.dumps(document, sort_keys=True, separators=(",", ":"))
    message = found.message
    while True:
        text = json.dumps({"ok": False, "reason": str(found.reason), "message": message})
        if len(text) < MAX_REPORT_BYTES:
            return text
        message = message[: len(message) * 3 // 4] + "..."


def from_json(text: str) -> ResolvedModel | Unresolved:
    """Reads what `to_json` wrote. Raises SpecError when it is something else."""
    try:
        document: dict[str, Any] = json.loads(text)
        if not document["ok"]:
            return Unresolved(reason=Reason(document["reason"]), message=document["message"])
        known = {field.name for field in fields(ModelGeometry)}
        shape = {name: value for name, value in document["geometry"].items() if name in known}
        return ResolvedModel(
            geometry=ModelGeometry(**{**shape, "dtype": Dtype(shape["dtype"])}),
            weight_bytes=Bytes(int(document["weight_bytes"])),
            chat_template=bool(document["chat_template"]),
            digest=str(document["digest"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"inspect result: not one of ours ({error!r}): {text[:200]!r}; is the "
                        "runtime image of this release?") from error  # fmt: skip
