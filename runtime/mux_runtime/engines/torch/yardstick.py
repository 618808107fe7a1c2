"""`python -m mux_runtime.engines.torch.yardstick`: times the same forward pass now and then.

Says what each sample took, a line of (moment of `time.monotonic`, seconds of a core, seconds that
all cores ran so far, seconds stolen from them), until its standard input ends, that is, until
whoever started it does.
"""

import os
import select
import sys
import time
from typing import Final

import torch

from mux_core.checkpoint import ModelConfig, Rope
from mux_core.llm import Dtype, ModelGeometry
from mux_runtime.core_time import CoreTime
from mux_runtime.engines.torch.layout import layout
from mux_runtime.engines.torch.model import DenseModel

EVERY_S: Final = 0.5
PASSES: Final = 8
MODEL: Final = ModelConfig(
    geometry=ModelGeometry(
        architecture="LlamaForCausalLM", layers=4, hidden=128, intermediate=256, heads=4,
        kv_heads=2, head_dim=32, vocab=512, max_model_len=16, dtype=Dtype.FLOAT32),
    rope=Rope(theta=10_000.0), norm_eps=1e-5,
)  # fmt: skip


def main() -> None:
    """Takes samples on all cores in turn, as each may have another neighbour."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = {
        weight.name: torch.randn(weight.shape)
        for weight in layout(MODEL, Dtype.FLOAT32.itemsize).weights
    }
    model, cores = DenseModel(MODEL, weights), sorted(os.sched_getaffinity(0))
    turn = 0
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        os.sched_setaffinity(0, {cores[turn % len(cores)]})
        model.warm_up()
        # Seconds on a core: what others take of it meanwhile is not the machine's speed.
        begun = time.thread_time()
        for _ in range(PASSES):
            model.warm_up()
        ran_s = (time.thread_time() - begun) / PASSES
        machine = CoreTime.now()
        print(time.monotonic(), ran_s, machine.ran_s, machine.stolen_s, flush=True)
        turn += 1


if __name__ == "__main__":
    main()
