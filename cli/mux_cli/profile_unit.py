"""Which models the unit serves whose own cost is timed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mux_cli.profile_subjects import Subject
from mux_core.units import MIB
from mux_runtime.profiling.probe_unit import ToServe
from mux_runtime.profiling.unit_cost import CROWD, MOST_TOKENS

MOST_MODELS: Final = 3
"""Of more, the smallest."""
LEAST_BYTES: Final = 256 * MIB
"""Of each model, beside its weights."""
STREAMS: Final = CROWD.streams
"""Of each model, for which there is KV."""


def models_to_serve(subjects: Sequence[Subject], folder: Path) -> ToServe:
    """Profiled models that a client can ask (with a tokenizer, and long enough) and that fit half
    of this machine's memory; where there are none, a small one of our own, made in `folder`."""
    able = [s for s in subjects if not s.is_config and s.geometry.max_model_len > MOST_TOKENS]
    able.sort(key=lambda subject: subject.geometry.weight_bytes)
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    models: dict[str, Path] = {}
    memory = 0
    for subject in able[:MOST_MODELS]:
        kv = max(LEAST_BYTES, STREAMS * MOST_TOKENS * subject.token_bytes)
        needed = subject.geometry.weight_bytes + kv
        if memory + needed > room:
            break
        models[subject.name] = subject.source.resolve()
        memory += needed
    if not models:
        return ToServe(models={"": _write_small(folder)}, memory=LEAST_BYTES)
    return ToServe(models=models, memory=memory)


def _write_small(folder: Path) -> Path:
    from mux_cli.tiny_models import TinyModel, write

    os.environ.setdefault("TQDM_DISABLE", "1")
    return write(TinyModel(family="qwen3", layers=2, hidden=64, head_dim=32, intermediate=128,
                           vocab=1024, seed=9), folder / "small")  # fmt: skip
