"""The models a profile is asked for: checkpoints, or config.json files without weights."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from mux_core.engine import kv_geometry
from mux_core.errors import SpecError, UnsupportedModel
from mux_core.llm import ModelGeometry
from mux_core.unitspec import UNIT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One model asked for: a checkpoint, or a config.json that random weights are made for."""

    name: str
    source: Path
    is_config: bool
    geometry: ModelGeometry

    @property
    def token_bytes(self) -> int:
        """KV of one token in the pool, the part-filled end of its units included."""
        g = self.geometry
        layout = kv_geometry(layers=g.layers, kv_heads=g.kv_heads, head_dim=g.head_dim,
                             dtype=g.dtype, unit_bytes=UNIT_BYTES)  # fmt: skip
        return -(-layout.row_units * UNIT_BYTES // layout.block_tokens)


def read_subjects(args: argparse.Namespace) -> tuple[Subject, ...]:
    """The models, all readable, each of a name of its own."""
    from mux_runtime.engines.checkpoint_files import read_model_config, read_tensors

    found = []
    for folder in args.models:
        geometry = read_model_config(folder).geometry
        read_tensors(folder)
        found.append(Subject(name=folder.resolve().name, source=folder, is_config=False,
                              geometry=geometry))  # fmt: skip
    for config in args.config:
        found.append(Subject(name=config.resolve().parent.name, source=config, is_config=True,
                              geometry=_geometry(config)))  # fmt: skip
    if not found:
        raise SpecError("no model: give folders of checkpoints, or --config config.json")
    names = [subject.name for subject in found]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"model {name}: two folders have this name; rename one, a profile "
                            "tells models by it")  # fmt: skip
    return tuple(found)


def _geometry(config: Path) -> ModelGeometry:
    from mux_core.checkpoint import read_config
    from mux_runtime.engines.checkpoint_files import read_json

    try:
        return read_config(read_json(config)).geometry
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{config}: {error}") from error
