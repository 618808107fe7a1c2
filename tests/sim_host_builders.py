"""The simulator's engine as a back-end under test: its tokens stand in the pool's own memory."""

from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

from engine_builders import BOTH, MODELS, KnownModel, World
from mux_core.engine import Phase, Row, kv_geometry
from mux_core.simulator.host import SimHost, SimModel, token_at
from mux_runtime.engines.host import EngineHost

LONGEST = 2048


@dataclass(frozen=True)
class SimulatedModel(KnownModel):
    """A model whose tokens are a function of seed, model, prompt and index."""

    def generate(self, prompt: tuple[int, ...], outputs: int) -> tuple[tuple[int, ...], float]:
        vocab = MODELS[self.name].vocab
        tokens = (token_at(index, prompt, seed=0, model=self.name, vocab=vocab)
                  for index in range(outputs))  # fmt: skip
        return tuple(tokens), inf


def simulated_models() -> dict[str, KnownModel]:
    return {name: SimulatedModel(name, Path()) for name in MODELS}


@dataclass(frozen=True)
class PoolNotes:
    """Token ids in the pool's bytes, in every run of a row, four bytes each."""

    words: np.ndarray

    def write(self, row: Row, offset: int, token: int) -> None:
        self.words[list(row), offset] = token

    def read(self, row: Row, offset: int) -> int:
        found = set(self.words[list(row), offset].tolist())
        assert len(found) == 1, "layers of one row differ"
        return int(found.pop())


def sim_host(model: KnownModel, world: World, phases: frozenset[Phase] = BOTH) -> EngineHost:
    shape = MODELS[model.name]
    geometry = kv_geometry(
        layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype="float32",
        unit_bytes=world.pool.unit_bytes,
    )  # fmt: skip
    known = SimModel(name=model.name, geometry=geometry, vocab=shape.vocab, longest=LONGEST)
    units = world.allocator.total_units
    notes = PoolNotes(world.pool.memory.numpy().view(np.int32))
    return SimHost(known, notes, units=units, phases=phases)
