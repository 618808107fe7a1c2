"""How a torch host starts: describe from config.json, then open. Imports torch only in `open`."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mux_core.checkpoint import ModelConfig
from mux_core.engine import KVGeometry, Phase, kv_geometry
from mux_core.errors import CapacityError, PeerError, SpecError, UnsupportedModel
from mux_core.llm import Dtype
from mux_runtime.engines.checkpoint_files import read_model_config
from mux_runtime.engines.host import (
    AttachFailed,
    EngineDescription,
    EngineHost,
    GeometryMismatch,
    WeightsHandle,
)
from mux_runtime.engines.torch.layout import layout
from mux_runtime.kvpool.client import PoolClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A host's arguments. `arena` names the weights that all hosts of the model share.

    `private_kv`: this host keeps KV of its own that no other reads; on a GPU it must.
    """

    model_dir: Path
    pool: str
    arena: str
    phases: frozenset[Phase]
    unit_bytes: int
    dtype: str = "Auto"
    max_model_len: int | None = None
    device: str = "cpu"
    threads: int = 1
    private_kv: bool = False


@dataclass(frozen=True)
class TorchStart:
    """See `mux_runtime.engines.serving.EngineStart`."""

    settings: Settings

    @cached_property
    def config(self) -> ModelConfig:
        return read_model_config(self.settings.model_dir)

    @cached_property
    def dtype(self) -> Dtype:
        if self.settings.dtype == "Auto":
            return self.config.geometry.dtype
        try:
            return Dtype(self.settings.dtype)
        except ValueError:
            raise UnsupportedModel(f"dtype is {self.settings.dtype!r}; use Auto, "
                                   f"{', '.join(Dtype)}") from None  # fmt: skip

    @cached_property
    def geometry(self) -> KVGeometry:
        g = self.config.geometry
        return kv_geometry(layers=g.layers, kv_heads=g.kv_heads, head_dim=g.head_dim,
                           dtype=self.dtype.value, unit_bytes=self.settings.unit_bytes)  # fmt: skip

    @property
    def max_model_len(self) -> int:
        own, wanted = self.config.geometry.max_model_len, self.settings.max_model_len
        if wanted is not None and not 1 < wanted <= own:
            raise UnsupportedModel(f"model.maxModelLen: {wanted}, the checkpoint allows 2 to {own}"
                                   "; lower it or remove it")  # fmt: skip
        return wanted or own

    def describe(self) -> EngineDescription:
        return EngineDescription(
            geometry=self.geometry,
            weight_bytes=layout(self.config, self.dtype.itemsize).nbytes,
            max_model_len=self.max_model_len,
            vocab=self.config.geometry.vocab,
            eos_token_ids=self.config.eos_token_ids,
        )

    def open(self) -> EngineHost:
        """Pays for torch; maps the pool through its owner's socket."""
        engine = _import_engine()(self)
        weights = WeightsHandle(model_dir=str(self.settings.model_dir), arena=self.settings.arena)
        try:
            with PoolClient.connect(self.settings.pool) as pool:
                engine.open(pool, weights, self.settings.device)
        except SpecError as error:
            if type(error) is SpecError:
                raise GeometryMismatch(str(error)) from error
            raise
        except (PeerError, CapacityError) as error:
            raise AttachFailed(str(error)) from error
        return engine


def _import_engine() -> Callable[[TorchStart], EngineHost]:
    """Imports torch without collecting garbage.

    What it imports stays; looking through it for what does not took a fifth of the import's CPU
    time (1.65 s against 1.3 s, torch 2.15), and every host pays that.
    """
    gc.disable()
    try:
        from mux_runtime.engines.torch.engine import TorchEngine
    finally:
        gc.freeze()
        gc.enable()
    return TorchEngine
