"""An engine host in this process that keeps every rule of the interface, and its starter.

Its "model" is a pure function of the tokens so far, so that tokens tell whether a request was
recomputed rightly. It takes rows from its lease only, owns what it says, and dies when told.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    kv_geometry,
)
from mux_core.errors import MuxError, SpecError
from mux_core.unitspec import MemberSpec
from mux_runtime.engines.host import EngineDescription, EngineFault
from mux_runtime.generation import GenerationRequest
from mux_runtime.kvpool.reference import ReferenceAllocator
from mux_runtime.scheduler.links import Host, HostOrder
from mux_runtime.scheduler.settings import Settings
from mux_runtime.scheduler.unit import UnitScheduler

VOCAB = 997


def geometry(layers: int = 2, kv_heads: int = 1) -> KVGeometry:
    return kv_geometry(
        layers=layers, kv_heads=kv_heads, head_dim=16, dtype="float32", unit_bytes=256
    )


def next_token(tokens: Sequence[int]) -> int:
    value = 7
    for token in tokens:
        value = (value * 31 + token + 1) % VOCAB
    return value


def expected(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass(slots=True, kw_only=True)
class _Seq:
    tokens: list[int]
    sampling: Sampling
    prompt_len: int
    detach: bool
    rows: list[Row] = field(default_factory=list)
    written: int = 0


class ScriptedHost:
    """Keeps `Host`. `hold` makes a step wait until released; `die` ends it mid-step."""

    def __init__(self, order: HostOrder, shape: KVGeometry, description: EngineDescription) -> None:
        self.order, self.shape, self.description = order, shape, description
        self.lost = asyncio.Event()
        self.pid, self.sms, self.ending = order.epoch, 0, ""
        self.stuck = ""
        self.seqs: dict[str, _Seq] = {}
        self.gate: asyncio.Event | None = None
        self.steps: list[Grant] = []
        self.fault: MuxError | None = None

    async def describe(self) -> EngineDescription:
        return self.description

    async def open(self) -> EngineDescription:
        if self.fault is not None:
            raise self.fault
        return self.description

    def die(self) -> None:
        self.lost.set()
        if self.gate is not None:
            self.gate.set()

    def _alive(self) -> None:
        if self.lost.is_set():
            raise EngineFault(f"host epoch {self.order.epoch} is gone")

    async def add(self, rid: str, token_ids: Sequence[int], sampling: Sampling, *, prompt_len: int,
                  kv: KVHandoff | None = None, detach: bool = False) -> None:  # fmt: skip
        self._alive()
        assert rid not in self.seqs
        if self.stuck == "add":
            await asyncio.Event().wait()
        seq = _Seq(tokens=list(token_ids), sampling=sampling, prompt_len=prompt_len, detach=detach)
        if kv is not None:
            assert kv.num_tokens == len(token_ids) - 1
            seq.rows, seq.written = list(kv.rows), kv.num_tokens
        self.seqs[rid] = seq
        await asyncio.sleep(0)

    async def stepping(self, count: int) -> None:
        """Until so many steps have begun."""
        async with asyncio.timeout(5):
            while len(self.steps) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def let_one_pass(self) -> None:
        """Ends the step that waits at the gate and leaves the gate closed for the next."""
        assert self.gate is not None
        passed, self.gate = self.gate, asyncio.Event()
        passed.set()

    async def abort(self, rid: str) -> KVHandoff | None:
        self._alive()
        if self.stuck == "abort":
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        seq = self.seqs.pop(rid, None)
        if seq is None:
            return None
        return self._handoff(seq)

    def _handoff(self, seq: _Seq) -> KVHandoff:
        return KVHandoff(geometry=self.shape, rows=tuple(seq.rows), num_tokens=seq.written)

    async def step(self, grant: Grant) -> StepResult:
        self._alive()
        self.steps.append(grant)
        await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        self._alive()
        lease, used, budget = list(grant.lease), 0, grant.token_budget
        outputs, freed, handoffs, starved = [], [], {}, False
        counted = {Phase.PREFILL: 0, Phase.DECODE: 0}
        for rid, seq in list(self.seqs.items())[: grant.max_seqs]:
            if budget <= 0:
                break
            part = min(len(seq.tokens) - seq.written, budget)
            need = self.shape.rows_for(seq.written + part) - len(seq.rows)
            if used + need > len(lease):
                starved = True
                continue
            seq.rows += lease[used : used + need]
            used += need
            seq.written += part
            budget -= part
            counted[self.order.phase] += part
            if seq.written < len(seq.tokens):
                continue
            output = self._sample(rid, seq)
            outputs.append(output)
            if output.finish is not None:
                del self.seqs[rid]
                if seq.detach:
                    handoffs[rid] = self._handoff(seq)
                else:
                    freed += seq.rows
        return StepResult(
            step=grant.step, outputs=tuple(outputs), handoffs=handoffs, used=used,
            prefill_tokens=counted[Phase.PREFILL], decode_tokens=counted[Phase.DECODE],
            freed=tuple(freed), starved=starved, more=bool(self.seqs), need_rows=int(starved),
        )  # fmt: skip

    def _sample(self, rid: str, seq: _Seq) -> Output:
        token = next_token(seq.tokens)
        seq.tokens.append(token)
        count = len(seq.tokens) - seq.prompt_len
        finish = None
        if token in seq.sampling.stop_token_ids:
            finish = Finish.STOP
        elif count >= seq.sampling.max_tokens:
            finish = Finish.LENGTH
        elif self.order.phase is Phase.PREFILL:
            finish = Finish.HANDOFF
        return Output(rid=rid, tokens=(token,), finish=finish)


class ScriptedStarter:
    """Starts scripted hosts; `broken` says which models cannot be opened, and why."""

    def __init__(self, shapes: dict[str, KVGeometry], weight_bytes: int = 256) -> None:
        self.shapes = shapes
        self.weight_bytes = weight_bytes
        self.hosts: dict[tuple[str, Phase], ScriptedHost] = {}
        self.started: list[HostOrder] = []
        self.ended: list[HostOrder] = []
        self.forgotten: list[str] = []
        self.broken: dict[str, Callable[[], MuxError]] = {}
        self.gated: set[tuple[str, Phase]] = set()

    async def start(self, order: HostOrder) -> Host:
        await asyncio.sleep(0)
        shape = self.shapes[order.model]
        description = EngineDescription(
            geometry=shape, weight_bytes=self.weight_bytes, max_model_len=4096, vocab=VOCAB,
            eos_token_ids=(),
        )  # fmt: skip
        host = ScriptedHost(order, shape, description)
        if order.model in self.broken:
            host.fault = self.broken[order.model]()
        if (order.model, order.phase) in self.gated:
            host.gate = asyncio.Event()
        self.started.append(order)
        self.hosts[order.model, order.phase] = host
        return host

    async def end(self, order: HostOrder) -> None:
        await asyncio.sleep(0)
        self.ended.append(order)
        host = self.hosts.get((order.model, order.phase))
        if host is not None and host.order.epoch == order.epoch:
            host.die()

    async def forget(self, model: str) -> None:
        self.forgotten.append(model)


@dataclass(slots=True, kw_only=True)
class ToyScheduler:
    """A scheduler over scripted hosts, with what a test needs to look at."""

    scheduler: UnitScheduler
    starter: ScriptedStarter
    allocator: ReferenceAllocator

    def host(self, model: str, phase: Phase) -> ScriptedHost:
        return self.starter.hosts[model, phase]

    async def serving(self, *models: str) -> None:
        async with asyncio.timeout(5):
            while not set(models) <= {m.model for m in self.scheduler.models()}:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def idle(self) -> None:
        async with asyncio.timeout(10):
            while not self.scheduler.is_idle:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        self.scheduler.audit()


def spec(model: str, **changes: Any) -> MemberSpec:
    return MemberSpec(**{
        "model": model, "served_name": f"{model}-served", "path": f"/models/{model}",
        "prefill_percent": 60, "decode_percent": 30} | changes)  # fmt: skip


def unit(
    models: dict[str, KVGeometry] | None = None, *, units: int = 512,
    clock: Callable[[], float] = time.monotonic, **settings: Any,
) -> ToyScheduler:  # fmt: skip
    starter = ScriptedStarter(models or {"a": geometry()})
    allocator = ReferenceAllocator(units)
    scheduler = UnitScheduler(
        allocator=allocator, starter=starter, unit_bytes=256, clock=clock,
        settings=Settings(**{"backoff_s": 0.001, "adapt_after_hold_s": 0.001,
                             "urgent_after_s": 0.02, "reclaim_after_s": 0.02,
                             "audit_every_s": 0.0} | settings),
    )  # fmt: skip
    return ToyScheduler(scheduler=scheduler, starter=starter, allocator=allocator)


def ask(
    rid: str, model: str = "a", prompt: Sequence[int] = (1, 2, 3), count: int = 8, **sampling: Any
) -> GenerationRequest:
    return GenerationRequest(
        rid=rid, model=model, prompt=tuple(prompt),
        sampling=Sampling(max_tokens=count, **sampling),
    )  # fmt: skip


async def collect(unit: ToyScheduler, request: GenerationRequest) -> list[int]:
    tokens: list[int] = []
    async for output in unit.scheduler.submit(request):
        tokens.extend(output.tokens)
    return tokens


def corrupt() -> MuxError:
    return SpecError("model-00001.safetensors: truncated at 12 bytes; copy it again")
