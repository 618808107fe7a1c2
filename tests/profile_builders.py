"""A profile of two small models, written by hand: round numbers, no engine."""

from collections.abc import Callable

from mux_core.costmodel.profile_set import (
    CPU,
    MadeOn,
    ModelProfile,
    PairStep,
    PairTimes,
    ProfileSet,
    UnitCost,
    Work,
)
from mux_core.costmodel.table import StepRow, step_table
from mux_core.engine import Phase
from mux_core.llm import Dtype, ModelGeometry

Seconds = Callable[[int, int], float]

MADE = MadeOn(device="a processor, 2 cores", cores=2, path="torch/cpu/gathered-rows-sdpa",
              release="0.1.0", commit="abc", at="2030-01-01T00:00:00Z")  # fmt: skip


def shape(layers: int = 4, hidden: int = 256, **changes: object) -> ModelGeometry:
    return ModelGeometry(**{  # type: ignore[arg-type]
        "architecture": "LlamaForCausalLM", "layers": layers, "hidden": hidden,
        "intermediate": 2 * hidden, "heads": 8, "kv_heads": 2, "head_dim": hidden // 8,
        "vocab": 2048, "max_model_len": 2048, "dtype": Dtype.FLOAT32} | changes)  # fmt: skip


def decode_s(batch: int, tokens: int) -> float:
    return 0.001 + 0.0002 * batch + 1e-7 * batch * tokens


def prefill_s(batch: int, tokens: int) -> float:
    return 0.001 + 5e-5 * batch * tokens


def model_profile(
    name: str, geometry: ModelGeometry, decode: Seconds = decode_s, prefill: Seconds = prefill_s
) -> ModelProfile:
    """The same times on one thread and on two."""
    rows = [StepRow(tensor=1, percent=percent, batch=batch, tokens=tokens, prefill_s=None,
                    decode_s=decode(batch, tokens))
            for percent in (50, 100) for batch in (1, 4, 16, 64)
            for tokens in (64, 512)]  # fmt: skip
    rows += [StepRow(tensor=1, percent=percent, batch=batch, tokens=tokens, decode_s=None,
                     prefill_s=prefill(batch, tokens))
             for percent in (50, 100) for batch in (1, 4) for tokens in (1, 64, 256)]  # fmt: skip
    return ModelProfile(name=name, geometry=geometry, table=step_table(name, CPU, rows),
                        grant_s=1e-4, handoff_s=2e-4, host_bytes=300 << 20)  # fmt: skip


def profile_set(*models: ModelProfile, **changes: object) -> ProfileSet:
    one, other = (
        PairStep(model="a", phase=Phase.DECODE, percent=50, batch=4, tokens=256),
        PairStep(model="b", phase=Phase.PREFILL, percent=50, batch=1, tokens=128),
    )
    pair = PairTimes(sides=(one, other), alone_s=(0.002, 0.01), together_s=(0.003, 0.011))
    return ProfileSet(**{  # type: ignore[arg-type]
        "gpu": CPU, "made": MADE, "pairs": (pair,), "left_out": ("most of it",),
        "unit": UnitCost(step_s=5e-4, token_s=1e-4, request_s=4e-3,
                         scheduler=Work(step_s=4e-4, token_s=6e-5, request_s=1e-3),
                         client=Work(step_s=1e-4, token_s=3e-5, request_s=5e-4)),
        "models": models or (model_profile("a", shape()), model_profile("b", shape(layers=2)))}
        | changes)  # fmt: skip
