"""What is served and what is asked of it: geometry, demand, service level."""

from dataclasses import dataclass, field
from enum import StrEnum

from mux_core.errors import SpecError
from mux_core.units import Bytes, ModelName, Percent


class Dtype(StrEnum):
    """Element type of weights and KV."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return 4 if self is Dtype.FLOAT32 else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGeometry:
    """The shape of one dense decoder-only transformer; enough to cost it and to size its KV.

    `hidden`, `intermediate`, `head_dim` in elements; `vocab` in tokens; `max_model_len` in tokens.
    """

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_model_len: int
    dtype: Dtype
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab",
                     "max_model_len"):  # fmt: skip
            if getattr(self, name) < 1:
                raise SpecError(f"model geometry: {name} is {getattr(self, name)}; at least 1")
        if self.heads % self.kv_heads:
            raise SpecError(f"model geometry: {self.heads} heads are not a multiple of "
                            f"{self.kv_heads} KV heads")  # fmt: skip

    @property
    def parameters(self) -> int:
        """Number of weights, norms included."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        if self.qkv_bias:
            attention += self.head_dim * (self.heads + 2 * self.kv_heads)
        if self.qk_norm:
            attention += 2 * self.head_dim
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * layer + embeddings + self.hidden

    @property
    def weight_bytes(self) -> Bytes:
        return Bytes(self.parameters * self.dtype.itemsize)

    @property
    def kv_bytes_per_token(self) -> Bytes:
        """K and V of every layer and KV head."""
        return Bytes(2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Targets per request and the share of requests that must meet them (0 to 1)."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    objective: float = 0.99

    def __post_init__(self) -> None:
        if self.ttft_s is None and self.tpot_s is None:
            raise SpecError("slo: set ttft, tpot or both, e.g. ttft: 500ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What arrives: requests/s, mean token lengths, burstiness (1 = Poisson)."""

    rate: float
    prompt_tokens: float = 161.0
    output_tokens: float = 337.0
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        if not self.rate >= 0:
            raise SpecError(f"demand: rate {self.rate} requests/s; at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingPolicy:
    """What an LLM allows of sharing.

    `tenant_group`: LLMs of different groups never share a unit. Percents bound each phase's SM
    share. `kv_request` is a floor, `kv_limit` a borrowing ceiling, in bytes over all GPUs.
    """

    exclusive: bool = False
    tenant_group: str = ""
    min_percent: Percent | None = None
    max_percent: Percent = Percent(100)
    kv_request: Bytes = Bytes(0)
    kv_limit: Bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Llm:
    """One served model as the planner sees it.

    `profile` names a measured cost table (`llama-7b`); without one, the cost model derives costs
    from `geometry`. `weight_bytes` is what one copy of the weights takes, over all its ranks.
    `allowed_tensor` empty means the planner chooses among the pool's group sizes.
    """

    name: ModelName
    weight_bytes: Bytes
    demand: Demand
    geometry: ModelGeometry | None = None
    profile: str | None = None
    slo: Slo | None = None
    sharing: SharingPolicy = field(default_factory=SharingPolicy)
    allowed_tensor: tuple[int, ...] = ()
    min_replicas: int = 1
    max_replicas: int = 1
    priority: int = 0
    movable: bool = True
    spatial_gpus: int | None = None

    def __post_init__(self) -> None:
        if self.geometry is None and self.profile is None:
            raise SpecError(f"LLM {self.name}: neither geometry nor profile; its cost is unknown")
        if self.min_replicas > self.max_replicas:
            raise SpecError(f"LLM {self.name}: minReplicas {self.min_replicas} exceeds "
                            f"maxReplicas {self.max_replicas}; lower it")  # fmt: skip
