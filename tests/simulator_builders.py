"""Small units and traffic for tests of the simulator."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mux_core.estimator.muxserve import reference_model
from mux_core.llm import Demand, Llm
from mux_core.placement import (
    GpuGroup,
    GpuNode,
    KvQuota,
    Member,
    Placement,
    Share,
    Unit,
)
from mux_core.planning import PlacementProblem
from mux_core.simulator.adbs_policy import adbs
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.policy import PolicyFactory
from mux_core.simulator.record import RunRecord
from mux_core.simulator.run import Settings, simulate
from mux_core.units import GIB, Bytes, ModelName, NodeName, Percent, UnitId

NODE = GpuNode(name=NodeName("n"), gpus=8, memory=Bytes(80 * GIB), gpu="a100-80gb")


def llm(name: str, profile: str = "llama-7b", rate: float = 1.0, **changes: Any) -> Llm:
    weights = Bytes(int(reference_model(profile).weights_gb * GIB))
    return replace(
        Llm(name=ModelName(name), profile=profile, weight_bytes=weights, demand=Demand(rate=rate)),
        **changes,
    )


def member(
    name: str, *, decode: int = 50, prefill: int = 100, kv_gib: float = 4.0,
    limit_gib: float | None = None, rate: float = 1.0, tensor: int = 1,
) -> Member:  # fmt: skip
    kv = Bytes(int(kv_gib * GIB))
    limit = kv if limit_gib is None else Bytes(int(limit_gib * GIB))
    return Member(
        model=ModelName(name), replica=0, tensor=tensor, rate=rate,
        share=Share(prefill=Percent(prefill), decode=Percent(decode)),
        kv=KvQuota(guaranteed=kv, limit=limit),
    )  # fmt: skip


def placed(*units: Sequence[Member], gpus: int = 1) -> Placement:
    """Unit u0, u1, ... of so many GPUs each, with these members."""
    made = [
        Unit(id=UnitId(f"u{i}"), members=tuple(sorted(members, key=lambda m: m.model)),
             group=GpuGroup(node=NODE.name, gpus=tuple(range(i * gpus, (i + 1) * gpus))))
        for i, members in enumerate(units)
    ]  # fmt: skip
    return Placement(units=tuple(made))


def problem(*llms: Llm) -> PlacementProblem:
    return PlacementProblem(now=0.0, nodes=(NODE,),
                            llms=tuple(sorted(llms, key=lambda m: m.name)))  # fmt: skip


def traffic(rates: dict[str, float], *, until: float, seed: int = 0, prompt: int = 161,
            output: int = 40) -> Iterator[Arrival]:  # fmt: skip
    """Poisson arrivals with exponential lengths around these means."""
    rng = random.Random(seed)
    found = []
    for name, rate in rates.items():
        at = rng.expovariate(rate)
        while at < until:
            lengths = (1 + int(rng.expovariate(1 / mean)) for mean in (prompt, output))
            found.append(Arrival(at, ModelName(name), *lengths))
            at += rng.expovariate(rate)
    return iter(sorted(found, key=lambda arrival: arrival.at))


def run(llms: Sequence[Llm], placement: Placement, arrivals: Iterator[Arrival], *,
        policy: PolicyFactory = adbs, **settings: Any) -> RunRecord:  # fmt: skip
    chosen = {"seconds": 60.0, "warmup": 0.0, "check": True} | settings
    return simulate(problem(*llms), placement, arrivals, policy, Settings(**chosen))
