"""The latencies that SLO scales multiply: an LLM's own targets, else what it takes alone.

Alone means batch 1 on all SMs: MuxServe's measurements for the LLaMA profiles, else the profile
that also times the simulated steps, on the fewest GPUs that hold the LLM.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mux_core.costmodel.profile import profile_of
from mux_core.costmodel.table import StepTable
from mux_core.data import read_text
from mux_core.errors import SpecError
from mux_core.llm import Llm
from mux_core.placement import GpuNode
from mux_core.units import ModelName

Floats = NDArray[np.float64]

LENGTHS: Final = (32.0, 64.0, 128.0, 256.0, 512.0)
MUXSERVE_SHORT: Final = (32, 64)
"""MuxServe looks a prompt's prefill up by power of two and finds only these and 512."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyBase:
    """What scale 1 allows. `prefill_s`: by prompt length, at `LENGTHS`; `decode_s`: per token.

    `ttft_s`, `tpot_s`: targets in place of those; infinite where the LLM sets only the other one.
    """

    prefill_s: tuple[float, ...]
    decode_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None

    def ttft(self, prompts: Floats) -> Floats:
        """Allowed seconds to the first token; beyond 512 tokens on the last measured slope."""
        if self.ttft_s is not None:
            return np.full(len(prompts), self.ttft_s)
        slope = (self.prefill_s[-1] - self.prefill_s[-2]) / (LENGTHS[-1] - LENGTHS[-2])
        beyond = np.maximum(0.0, prompts - LENGTHS[-1]) * slope
        found: Floats = np.interp(prompts, LENGTHS, self.prefill_s) + beyond
        return found

    @property
    def tpot(self) -> float:
        """Allowed seconds per output token after the first."""
        return self.decode_s if self.tpot_s is None else self.tpot_s

    def end_to_end(self, prompts: Floats, outputs: Floats) -> Floats:
        """MuxServe's own base: a prefill, of 32 tokens for prompts of 65 to 511, and all tokens."""
        short, middle, long = self.prefill_s[0], self.prefill_s[1], self.prefill_s[-1]
        second = (prompts > MUXSERVE_SHORT[0]) & (prompts <= MUXSERVE_SHORT[1])
        prefill = np.where(prompts >= LENGTHS[-1], long, np.where(second, middle, short))
        found: Floats = prefill + outputs * self.decode_s
        return found


def latency_bases(
    llms: Sequence[Llm], nodes: Sequence[GpuNode], tables: Mapping[str, StepTable]
) -> dict[ModelName, LatencyBase]:
    """The base of every LLM, by name."""
    return {llm.name: latency_base(llm, nodes, tables) for llm in llms}


def latency_base(
    llm: Llm, nodes: Sequence[GpuNode], tables: Mapping[str, StepTable]
) -> LatencyBase:
    """The base of one LLM on the first GPU type of `nodes`."""
    measured = _measured().get(llm.profile or "")
    prefill, decode = measured or _alone(llm, nodes[0], tables)
    if llm.slo is None:
        return LatencyBase(prefill_s=prefill, decode_s=decode)
    never = float("inf")
    return LatencyBase(
        prefill_s=prefill,
        decode_s=decode,
        ttft_s=never if llm.slo.ttft_s is None else llm.slo.ttft_s,
        tpot_s=never if llm.slo.tpot_s is None else llm.slo.tpot_s,
    )


@cache
def _measured() -> Mapping[str, tuple[tuple[float, ...], float]]:
    """(prefill by length, mean decode over the lengths) as MuxServe's authors measured them."""
    found = {}
    for name, rows in json.loads(read_text("slo_baseline_latency.json")).items():
        if isinstance(rows, dict):
            pairs = [rows[str(int(length))] for length in LENGTHS]
            found[name] = (
                tuple(float(prefill) for prefill, _ in pairs),
                sum(decode for _, decode in pairs) / len(pairs),
            )
    return found


def _alone(
    llm: Llm, node: GpuNode, tables: Mapping[str, StepTable]
) -> tuple[tuple[float, ...], float]:
    profile = profile_of(llm, node.gpu, tables)
    allowed = [
        t for t in profile.table.tensors if not llm.allowed_tensor or t in llm.allowed_tensor
    ]
    fitting = [t for t in allowed if llm.weight_bytes < t * node.memory]
    if not fitting:
        raise SpecError(f"model {llm.name}: its weights fit none of the degrees {allowed} of its "
                        f"profile on {node.gpu}; use larger GPUs")  # fmt: skip
    tensor = min(fitting)
    prefill = tuple(
        profile.prefill_s(tensor=tensor, percent=100, batch=1, tokens=length) for length in LENGTHS
    )
    decode = [
        profile.decode_s(tensor=tensor, percent=100, batch=1, context=length) for length in LENGTHS
    ]
    return prefill, sum(decode) / len(decode)
