"""Engines under test: models with known greedy tokens, a local pool, and a driver that checks.

`Driver` plays the unit scheduler for one host and asserts after every step what the interface
promises; a test says what to run and looks at tokens and rows.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from mux_cli.tiny_models import TinyModel, write
from mux_core.engine import (
    Finish,
    Grant,
    KVGeometry,
    KVHandoff,
    Output,
    Phase,
    Row,
    Sampling,
    StepResult,
)
from mux_core.llm import Dtype
from mux_runtime.engines.host import EngineHost, WeightsHandle
from mux_runtime.engines.torch.device import KvMemory
from mux_runtime.engines.torch.engine import TorchEngine
from mux_runtime.engines.torch.start import Settings, TorchStart
from mux_runtime.engines.torch.weights import DTYPES
from mux_runtime.kvpool.allocator import Allocator, Owner, open_allocator
from mux_runtime.kvpool.client import Arena, Role, WeightArena

BOTH = frozenset(Phase)
PREFILL = frozenset({Phase.PREFILL})
DECODE = frozenset({Phase.DECODE})
MARGIN = 1e-3
POISON = 0xFF
"""Four of these are a NaN in float32, two in bfloat16: a stray read spoils every token after it."""

MODELS = {
    "llama": TinyModel(family="llama", layers=4, hidden=128, kv_heads=2, head_dim=32,
                       intermediate=192, vocab=512, seed=11),
    "qwen2": TinyModel(family="qwen2", layers=2, hidden=128, kv_heads=4, head_dim=32,
                       intermediate=192, vocab=512, tied=True, seed=12),
    "qwen3": TinyModel(family="qwen3", layers=3, hidden=96, kv_heads=2, head_dim=64,
                       intermediate=192, vocab=512, seed=13),
    "mistral": TinyModel(family="mistral", layers=2, hidden=96, heads=6, kv_heads=3, head_dim=32,
                         intermediate=192, vocab=512, seed=14),
}  # fmt: skip


def greedy(max_tokens: int, **others: object) -> Sampling:
    return Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **others)  # type: ignore[arg-type]


@dataclass(frozen=True)
class KnownModel:
    """A checkpoint on disk and what transformers makes of it."""

    name: str
    folder: Path

    def prompt(self, length: int, seed: int = 0) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed * 100_003 + length)
        vocab = MODELS[self.name].vocab
        return tuple(torch.randint(0, vocab, (length,), generator=generator).tolist())

    def sure_prompt(self, length: int, outputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A prompt whose greedy continuation no rounding can change, and that continuation."""
        for seed in range(50):
            prompt = self.prompt(length, seed)
            tokens, margin = self.generate(prompt, outputs)
            if margin >= MARGIN:
                return prompt, tokens
        raise AssertionError(f"{self.name}: no prompt of {length} tokens with sure tokens")

    def generate(self, prompt: tuple[int, ...], outputs: int) -> tuple[tuple[int, ...], float]:
        """transformers' greedy tokens, and the smallest lead of a chosen token."""
        return _generate(self.folder, prompt, outputs)


@cache
def _reference(folder: Path) -> object:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@cache
def _generate(folder: Path, prompt: tuple[int, ...], outputs: int) -> tuple[tuple[int, ...], float]:
    with torch.inference_mode():
        made = _reference(folder).generate(  # type: ignore[attr-defined]
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=outputs, min_new_tokens=outputs, do_sample=False, eos_token_id=None,
            pad_token_id=0, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    leads = [float(top[0] - top[1]) for top in (x[0].topk(2).values for x in made.logits)]
    return tuple(made.sequences[0, len(prompt) :].tolist()), min(leads)


def write_known_models(folder: Path) -> dict[str, KnownModel]:
    return {name: KnownModel(name, write(model, folder / name)) for name, model in MODELS.items()}


class LocalPool:
    """The pool owner's protocol within this process; poisoned memory, weights sealed as there."""

    def __init__(self, units: int, unit_bytes: int) -> None:
        self.unit_bytes = unit_bytes
        self._fd = _memory(units * unit_bytes)
        mapped = mmap.mmap(self._fd, units * unit_bytes)
        self.memory = torch.frombuffer(mapped, dtype=torch.uint8).view(units, unit_bytes)
        self._weights: dict[str, tuple[int, str]] = {}
        self.poison(range(units))

    def move_to(self, device: str) -> None:
        """Has KV lie in memory of that device from now on, for hosts that are given it."""
        if self.memory.device.type != device:
            self.memory = self.memory.to(device)

    def map_kv(self) -> Arena:
        size = self.memory.numel()
        return Arena(buffer=mmap.mmap(self._fd, size), nbytes=size)

    def attach(self, name: str, nbytes: int) -> WeightArena:
        known = name in self._weights
        fd, digest = self._weights.setdefault(name, (_memory(nbytes), ""))
        prot = mmap.PROT_READ if known else mmap.PROT_READ | mmap.PROT_WRITE
        buffer = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED, prot=prot)
        return WeightArena(buffer=buffer, nbytes=nbytes, name=name, digest=digest,
                           role=Role.READER if known else Role.LOADER)  # fmt: skip

    def seal(self, name: str, digest: str) -> None:
        self._weights[name] = (self._weights[name][0], digest)

    def poison(self, units: Sequence[int] | range) -> None:
        self.memory[list(units)] = POISON

    def is_poison(self, unit: int) -> bool:
        return bool((self.memory[unit] == POISON).all())

    def read(self, rows: Sequence[Row], geometry: KVGeometry) -> bytes:
        """The bytes of rows, as they lie."""
        units = [unit for row in rows for run in row
                 for unit in range(run, run + geometry.run_units)]  # fmt: skip
        return bytes(self.memory[units].cpu().numpy())


def _memory(nbytes: int) -> int:
    fd = os.memfd_create("arena")
    os.ftruncate(fd, nbytes)
    return fd


class World:
    """A pool, its allocator, and the hosts on it."""

    def __init__(self, units: int = 2048, unit_bytes: int = 2048) -> None:
        self.pool = LocalPool(units, unit_bytes)
        self.allocator: Allocator = open_allocator(units)
        self.drivers: list[Driver] = []

    def drive(self, host: EngineHost, member: str, epoch: int = 0) -> "Driver":
        driver = Driver(host, self, Owner(member, epoch))
        self.drivers.append(driver)
        return driver

    def give_back(self, rows: Sequence[Row], geometry: KVGeometry) -> None:
        """Frees rows and poisons them, as a next owner would."""
        self.allocator.free(rows, geometry)
        for run in (run for row in rows for run in row):
            self.pool.poison(range(run, run + geometry.run_units))

    def assert_empty(self) -> None:
        """Every row came back and nobody wrote to what was not his."""
        assert self.allocator.free_units == self.allocator.total_units
        self.assert_free_is_poison()

    def assert_free_is_poison(self) -> None:
        self.allocator.audit()
        for span in self.allocator.free_spans():
            touched = [u for u in range(span.start, span.start + span.units)
                       if not self.pool.is_poison(u)]  # fmt: skip
            assert not touched, f"free units were written: {touched[:5]}"


@dataclass
class Tracked:
    """What the scheduler knows of a request."""

    prompt_len: int
    tokens: list[int]
    sampling: Sampling
    kv_tokens: int = 0
    phase: Phase = Phase.PREFILL
    finish: Finish | None = None
    outputs: list[Output] = field(default_factory=list)

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(self.tokens[self.prompt_len :])


class Driver:
    """Plays the unit scheduler for one host; every step asserts the rules of the interface."""

    def __init__(self, host: EngineHost, world: World, owner: Owner) -> None:
        self.host, self.world, self.owner = host, world, owner
        self.geometry = host.geometry
        self.requests: dict[str, Tracked] = {}
        self.owned: set[Row] = set()
        self.handoffs: dict[str, KVHandoff] = {}
        self.last_step = 0

    def add(self, rid: str, tokens: Sequence[int], sampling: Sampling, *,
            prompt_len: int | None = None, kv: KVHandoff | None = None,
            detach: bool = False) -> None:  # fmt: skip
        length = len(tokens) if prompt_len is None else prompt_len
        self.host.add(rid, tokens, sampling, prompt_len=length, kv=kv, detach=detach)
        tracked = Tracked(prompt_len=length, tokens=list(tokens), sampling=sampling)
        if kv is not None:
            tracked.kv_tokens = kv.num_tokens
            self.owned.update(kv.rows[kv.shared_rows :])
            if kv.num_tokens == len(tokens) - 1 >= length:
                tracked.phase = Phase.DECODE
        self.requests[rid] = tracked

    def step(self, phases: frozenset[Phase] = BOTH, *, budget: int = 64, seqs: int = 16,
             rows: int = 64) -> StepResult:  # fmt: skip
        """One step with a lease of at most `rows` rows, then the checks of the interface."""
        while rows and not self.world.allocator.can_lease(self.geometry, rows):
            rows -= 1
        lease = self.world.allocator.lease(self.owner, self.geometry, rows)
        self.last_step += 1
        grant = Grant(step=self.last_step, phases=phases, token_budget=budget, max_seqs=seqs,
                      lease=lease)  # fmt: skip
        result = self.host.step(grant)
        self._check(grant, result)
        self._account(grant, result)
        return result

    def run(self, phases: frozenset[Phase] = BOTH, *, steps: int = 2000, **grant: int) -> None:
        """Steps until nothing is left to run in `phases`."""
        for _ in range(steps):
            if not any(t.phase in phases for t in self.active.values()):
                return
            self.step(phases, **grant)
        raise AssertionError(f"not done after {steps} steps: {list(self.active)}")

    def abort(self, rid: str) -> KVHandoff | None:
        kv = self.host.abort(rid)
        if kv is not None:
            tracked = self.requests.pop(rid)
            if tracked.phase is Phase.DECODE:
                assert kv.num_tokens == tracked.kv_tokens
            self._hand_over(kv)
        return kv

    @property
    def active(self) -> dict[str, Tracked]:
        return {rid: t for rid, t in self.requests.items() if t.finish is None}

    def output(self, rid: str) -> tuple[int, ...]:
        return self.requests[rid].output

    def _check(self, grant: Grant, result: StepResult) -> None:
        assert result.step == grant.step
        assert result.prefill_tokens + result.decode_tokens <= grant.token_budget
        assert 0 <= result.used <= len(grant.lease)
        assert len(result.outputs) <= grant.max_seqs
        if Phase.PREFILL not in grant.phases:
            assert result.prefill_tokens == 0
        if Phase.DECODE not in grant.phases:
            assert result.decode_tokens == 0
        decoded = [o for o in result.outputs if self.requests[o.rid].phase is Phase.DECODE]
        assert len(decoded) == result.decode_tokens
        assert len({o.rid for o in result.outputs}) == len(result.outputs)
        assert result.elapsed_ms >= 0

    def _account(self, grant: Grant, result: StepResult) -> None:
        self.owned.update(grant.lease[: result.used])
        self.world.allocator.free(grant.lease[result.used :], self.geometry)
        for output in result.outputs:
            tracked = self.requests[output.rid]
            tracked.tokens.extend(output.tokens)
            tracked.outputs.append(output)
            tracked.kv_tokens = len(tracked.tokens) - 1
            tracked.phase, tracked.finish = Phase.DECODE, output.finish
        self._leave(result)
        assert set(result.handoffs) <= {o.rid for o in result.outputs if o.finish}
        assert result.more == bool(self.active)
        assert self.host.stats().owned_rows == len(self.owned), "rows owned do not add up"

    def _leave(self, result: StepResult) -> None:
        assert set(result.freed) <= self.owned
        assert len(set(result.freed)) == len(result.freed)
        self.owned.difference_update(result.freed)
        self.world.give_back(result.freed, self.geometry)
        for rid, kv in result.handoffs.items():
            assert kv.num_tokens == self.requests[rid].kv_tokens
            assert len(kv.rows) == self.geometry.rows_for(kv.num_tokens)
            self._hand_over(kv)
            self.handoffs[rid] = kv

    def _hand_over(self, kv: KVHandoff) -> None:
        private = set(kv.rows[kv.shared_rows :])
        assert private <= self.owned
        assert len(set(kv.rows)) == len(kv.rows)
        self.owned -= private


MakeHost = Callable[[KnownModel, World, frozenset[Phase]], EngineHost]
"""How a back-end under test makes an open host of a model on a world's pool."""


def torch_host(
    model: KnownModel, world: World, phases: frozenset[Phase] = BOTH, **settings: object
) -> EngineHost:
    """The torch engine on the CPU, in this process."""
    return _open(_engine(model, world, phases, **settings), model, world, "cpu")


def torch_cuda_host(model: KnownModel, world: World, phases: frozenset[Phase] = BOTH) -> EngineHost:
    """The torch engine on a GPU. Hosts of one world share its memory as they are one process."""
    world.pool.move_to("cuda")

    def memory(_: object, __: object, geometry: KVGeometry) -> torch.Tensor:
        return world.pool.memory.flatten().view(DTYPES[Dtype(geometry.dtype)])

    engine = _engine(model, world, phases, private_kv=True, memory=memory)
    return _open(engine, model, world, "cuda")


def _engine(
    model: KnownModel, world: World, phases: frozenset[Phase],
    memory: KvMemory | None = None, **settings: object,
) -> TorchEngine:  # fmt: skip
    start = TorchStart(Settings(
        model_dir=model.folder, pool="", arena=model.name, phases=phases,
        unit_bytes=world.pool.unit_bytes, **settings,  # type: ignore[arg-type]
    ))  # fmt: skip
    return TorchEngine(start, memory)


def _open(engine: TorchEngine, model: KnownModel, world: World, device: str) -> EngineHost:
    engine.open(world.pool, WeightsHandle(model_dir=str(model.folder), arena=model.name), device)
    return engine
