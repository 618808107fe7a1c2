"""The cases that the planner's figures are stated for, and further ones it was not tuned to."""

import json
from dataclasses import replace

from mux_core.data import read_text
from mux_core.estimator.muxserve import reference_model
from mux_core.llm import Demand, Llm
from mux_core.placement import GpuNode
from mux_core.planning import PlacementProblem, PlanningPolicy
from mux_core.units import GIB, Bytes, ModelName, NodeName

PROFILES = ("llama-7b",) * 12 + ("llama-13b",) * 4 + ("llama-30b",) * 2 + ("llama-65b",)
FIRST_FIT = {
    "2.1/0.5": (12, 17), "2.1/0.75": (13, 18), "2.1/1.0": (15, 19), "2.1/1.25": (16, 21),
    "0.9/0.5": (16, 20), "0.9/0.75": (20, 23), "0.9/1.0": (26, 27), "0.9/1.25": (31, 31),
    "chat500": (19, 28), "chat800": (26, 31),
}  # fmt: skip
"""GPUs of a plain first fit: any number of tensor-parallel members per unit, and one."""


def llm(name: str, profile: str, rate: float) -> Llm:
    weights = Bytes(int(reference_model(profile).weights_gb * GIB))
    return Llm(name=ModelName(name), profile=profile, weight_bytes=weights,
               demand=Demand(rate=rate), max_replicas=4096)  # fmt: skip


def power_law(alpha: float, scale: float) -> tuple[Llm, ...]:
    return tuple(
        llm(f"llm-{i}", profile, 40 * scale * (i + 1) ** -alpha)
        for i, profile in enumerate(PROFILES)
    )


def chatlmsys(density: float) -> tuple[Llm, ...]:
    trace = json.loads(read_text("chatlmsys.json"))
    return tuple(
        llm(m["name"], m["profile"], (m["requests"] + 1) / trace["trace_window_s"] * density)
        for m in trace["models"]
    )


def published() -> dict[str, tuple[Llm, ...]]:
    cases = {f"{a}/{s}": power_law(a, s) for a in (2.1, 0.9) for s in (0.5, 0.75, 1.0, 1.25)}
    return cases | {f"chat{d}": chatlmsys(d) for d in (500, 800, 2000)}


def further() -> dict[str, tuple[Llm, ...]]:
    cases = {f"{a}/{s}": power_law(a, s) for a in (1.5, 0.5) for s in (0.5, 1.0, 1.5)}
    return cases | {f"chat{d}": chatlmsys(d) for d in (300, 1200, 3000)}


def nodes(count: int = 4, gpus: int = 8) -> tuple[GpuNode, ...]:
    return tuple(
        GpuNode(name=NodeName(f"node-{i:03d}"), gpus=gpus, memory=Bytes(80 * GIB), gpu="a100-80gb")
        for i in range(count)
    )


def problem(
    llms: tuple[Llm, ...], *, cluster: tuple[GpuNode, ...] | None = None, limit: int | None = None
) -> PlacementProblem:
    policy = PlanningPolicy(max_tensor_members=limit)
    return PlacementProblem(now=0.0, nodes=cluster or nodes(), llms=llms, policy=policy)


def at_rate(asked: Llm, rate: float) -> Llm:
    return replace(asked, demand=replace(asked.demand, rate=rate))
