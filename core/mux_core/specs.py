"""What people ask for, as typed values: the spec of an LLMDeployment and of a GPUPool.

Made from manifests by `mux_operator.schema` alone; whoever reads these never sees a field name
of a manifest. A spec that exists is valid on its own; what needs other objects to judge (a pool
that is absent, a name given twice) becomes a condition.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mux_core.llm import Demand, SharingPolicy, Slo
from mux_core.units import Bytes, NodeName, Percent
from mux_core.unitspec import Device


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PoolKey:
    """Names one GPUPool; an LLMDeployment uses a pool of its own namespace."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Mode(StrEnum):
    """May the operator take disruptive steps on its own?"""

    RECOMMEND_ONLY = "RecommendOnly"
    EXECUTE = "Execute"


class Scheme(StrEnum):
    """Where a checkpoint comes from."""

    FILE = "file"
    PVC = "pvc"
    HF = "hf"
    S3 = "s3"
    GS = "gs"
    OCI = "oci"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ModelSource:
    """A checkpoint's address: `pvc://claim/path`, `file:///folder`, `hf://org/name@rev`."""

    scheme: Scheme
    location: str
    revision: str = ""

    @property
    def key(self) -> str:
        """The same key means the same content was asked for."""
        return f"{self.scheme}://{self.location}" + (f"@{self.revision}" if self.revision else "")

    @property
    def claim(self) -> str | None:
        """The PersistentVolumeClaim that holds the checkpoint."""
        return self.location.partition("/")[0] if self.scheme is Scheme.PVC else None

    @property
    def folder(self) -> str:
        """The folder inside the claim, or on this machine."""
        if self.scheme is Scheme.PVC:
            return self.location.partition("/")[2].strip("/")
        return self.location


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmSpec:
    """The spec of one LLMDeployment. `declared` is the demand prior and floor, where given."""

    pool: str
    source: ModelSource
    served_name: str
    engine: str = "Auto"
    engine_args: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "Auto"
    max_model_len: int | None = None
    allowed_tensor: tuple[int, ...] = ()
    min_replicas: int = 1
    max_replicas: int = 1
    declared: Demand | None = None
    slo: Slo | None = None
    sharing: SharingPolicy = field(default_factory=SharingPolicy)
    priority: int = 0
    drain_timeout_s: float = 120.0
    movable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticNode:
    """One entry of `gpu.static`; `memory` is of one slot."""

    node: NodeName
    count: int
    memory: Bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTemplate:
    """What a pool may say about its unit pods; kept as written, used by the Kubernetes door."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, object], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    cpu: str = ""
    memory: str = ""
    scheduler: str = ""
    runtime_class: str = ""
    priority_class: str = ""
    image: str = ""
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """How long and how many requests of a model the gateway queues."""

    hold_timeout_s: float = 120.0
    max_queued_per_model: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """The spec of one GPUPool.

    `gpu_limit` caps the usable GPUs, `product` names the GPU type. `max_tensor_members`: members of
    a unit of several GPUs; 1 until NCCL under MPS is shown to be safe.
    """

    mode: Mode = Mode.RECOMMEND_ONLY
    device: Device = Device.CUDA
    static: tuple[StaticNode, ...] = ()
    resource_name: str = "nvidia.com/gpu"
    product: str = ""
    gpu_limit: int | None = None
    group_sizes: tuple[int, ...] = (1, 2, 4, 8)
    allow_sharing: bool = True
    share_step_percent: Percent = Percent(10)
    max_overcommit_percent: int = 100
    max_tensor_members: int = 1
    min_gain_percent: int = 15
    demand_source: str = "Auto"
    gateway: GatewayLimits = field(default_factory=GatewayLimits)
    pod: PodTemplate = field(default_factory=PodTemplate)
