"""Analytic step times from a model's shape and a GPU's data sheet.

A decode step reads the weights and the context's KV once; a prefill multiplies every weight with
every token. Each reaches a part of the data sheet's peak, and a small SM share reaches less of it:
weights stream at full speed from `WEIGHT_KNEE` of the SMs on, KV reads of paged attention only from
`KV_KNEE` on. Launching kernels from the host bounds small steps from below.

The constants are fitted to the shipped A100 LLaMA tables and to nothing else; for other GPUs they
carry over unverified until `muxserve profile` has measured there.
"""

from dataclasses import dataclass
from functools import cache

from mux_core.costmodel.hardware import GpuType, gpu_type
from mux_core.costmodel.table import StepRow, StepTable, step_table
from mux_core.llm import ModelGeometry

BANDWIDTH_EFFICIENCY = 0.64
FLOPS_EFFICIENCY = 0.60
WEIGHT_KNEE = 0.45
KV_KNEE = 0.80
PREFILL_SHARE_EXPONENT = 0.81
HOST_S_PER_LAYER = 0.37e-3
ALL_REDUCE_S = 45e-6
"""Latency of one all-reduce of a decode step; two per layer."""

PERCENTS = tuple(range(30, 101, 10))
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
LENGTHS = (32, 64, 128, 256, 512)
TENSORS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Step times of one model on one GPU type."""

    geometry: ModelGeometry
    gpu: GpuType

    def decode_s(self, *, tensor: int, percent: int, batch: int, context: float) -> float:
        """Seconds of one decode step of `batch` sequences of `context` tokens."""
        share = percent / 100
        bandwidth = self.gpu.bandwidth * BANDWIDTH_EFFICIENCY
        weights = self.geometry.weight_bytes / tensor / bandwidth / min(1.0, share / WEIGHT_KNEE)
        kv_bytes = batch * context * self.kv_bytes_per_rank_token(tensor)
        kv = kv_bytes / bandwidth / min(1.0, share / KV_KNEE)
        compute = 2 * self.geometry.parameters * batch / tensor / self._flops(share)
        spent = max(weights, compute) + kv + self._reduce_s(tensor, batch)
        return max(spent, self.geometry.layers * HOST_S_PER_LAYER)

    def prefill_s(self, *, tensor: int, percent: int, batch: int, tokens: float) -> float:
        """Seconds to prefill `batch` prompts of `tokens` tokens."""
        share = percent / 100
        model = self.geometry
        dense = 2 * model.parameters * batch * tokens
        attention = 2 * model.layers * model.heads * model.head_dim * batch * tokens * tokens
        compute = (dense + attention) / tensor / self._flops(share)
        bandwidth = self.gpu.bandwidth * BANDWIDTH_EFFICIENCY * min(1.0, share / WEIGHT_KNEE)
        weights = model.weight_bytes / tensor / bandwidth
        spent = max(compute, weights) + self._reduce_s(tensor, batch * tokens)
        return max(spent, model.layers * HOST_S_PER_LAYER)

    def kv_bytes_per_rank_token(self, tensor: int) -> float:
        """KV of one token on one rank; KV heads below the degree are repeated on ranks."""
        heads = max(1, -(-self.geometry.kv_heads // tensor))
        return self.geometry.kv_bytes_per_token * heads / self.geometry.kv_heads

    def _flops(self, share: float) -> float:
        return self.gpu.flops * FLOPS_EFFICIENCY * float(share**PREFILL_SHARE_EXPONENT)

    def _reduce_s(self, tensor: int, tokens: float) -> float:
        if tensor == 1:
            return 0.0
        volume = tokens * self.geometry.hidden * self.geometry.dtype.itemsize
        wire = 2 * volume * (tensor - 1) / tensor / self.gpu.link
        return 2 * self.geometry.layers * (ALL_REDUCE_S + wire)


@cache
def roofline_table(geometry: ModelGeometry, gpu: str) -> StepTable:
    """The analytic times on the grid of the measured tables, so that both are read alike."""
    model = Roofline(geometry=geometry, gpu=gpu_type(gpu))
    rows = [
        StepRow(
            tensor=tensor,
            percent=percent,
            batch=batch,
            tokens=tokens,
            prefill_s=model.prefill_s(tensor=tensor, percent=percent, batch=batch, tokens=tokens),
            decode_s=model.decode_s(tensor=tensor, percent=percent, batch=batch, context=tokens),
        )
        for tensor in TENSORS
        if geometry.heads % tensor == 0
        for percent in PERCENTS
        for batch in BATCHES
        for tokens in LENGTHS
    ]
    return step_table(geometry.architecture, gpu, rows)
