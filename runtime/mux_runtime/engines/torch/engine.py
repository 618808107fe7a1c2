"""The torch engine: `EngineHost` over a dense model and the shared KV arena."""

import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from mux_core.engine import (
    Finish,
    Grant,
    HostStats,
    KVGeometry,
    KVHandoff,
    Output,
    Phase,
    Row,
    Sampling,
    StepResult,
)
from mux_core.errors import RequestRefused
from mux_core.host_rules import RowBooks, check_request, first_phase
from mux_runtime.engines.host import (
    EngineFault,
    PoolHandle,
    WeightsHandle,
)
from mux_runtime.engines.torch.attention import Span, StepAttention
from mux_runtime.engines.torch.device import CPU, KvMemory, open_device, pool_memory, private_memory
from mux_runtime.engines.torch.layout import layout
from mux_runtime.engines.torch.model import DenseModel
from mux_runtime.engines.torch.paging import PagedKv
from mux_runtime.engines.torch.requests import (
    Chunk,
    Request,
    StepPlan,
    plan_step,
    rows_needed,
)
from mux_runtime.engines.torch.sampler import Draw, logprobs, sample
from mux_runtime.engines.torch.start import TorchStart
from mux_runtime.engines.torch.weights import on_device, share_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    model: DenseModel
    kv: PagedKv


class TorchEngine:
    """See `mux_runtime.engines.host.EngineHost`. `start` says which model and which phases,
    `memory` where KV lies (default: as the settings say)."""

    def __init__(self, start: TorchStart, memory: KvMemory | None = None) -> None:
        self._start = start
        self._memory = memory or (private_memory if start.settings.private_kv else pool_memory)
        self._device = CPU
        self._opened: _Opened | None = None
        self._requests: dict[str, Request] = {}
        self._tables: dict[str, torch.Tensor] = {}
        self._books = RowBooks(start.geometry, 0)
        self._last_step: int | None = None

    @property
    def geometry(self) -> KVGeometry:
        return self._start.geometry

    def open(self, pool: PoolHandle, weights: WeightsHandle, device: str) -> None:
        settings, dtype = self._start.settings, self._start.dtype
        on = self._device = open_device(device, private_kv=settings.private_kv)
        torch.set_num_threads(settings.threads)
        shared = share_weights(pool, weights, layout(self._start.config, dtype.itemsize), dtype)
        model = DenseModel(self._start.config, on_device(shared, on.torch))
        kv = PagedKv(self._memory(pool, on, self.geometry), self.geometry, settings.unit_bytes)
        self._books = RowBooks(self.geometry, kv.units)
        self._opened = _Opened(model=model, kv=kv)
        model.warm_up()
        on.wait_idle()

    def add(self, rid: str, token_ids: Sequence[int], sampling: Sampling, *, prompt_len: int,
            kv: KVHandoff | None = None, detach: bool = False) -> None:  # fmt: skip
        if rid in self._requests:
            raise RequestRefused(f"request {rid}: is on this host already; choose another id")
        check_request(rid, token_ids, sampling, prompt_len=prompt_len,
                      vocab=self._start.config.geometry.vocab,
                      longest=self._start.max_model_len)  # fmt: skip
        if kv is not None:
            self._books.check_adopted(rid, kv, len(token_ids))
        computed = kv.num_tokens if kv else 0
        request = Request(
            rid=rid, tokens=list(token_ids), prompt_len=prompt_len, sampling=sampling,
            detach=detach, phase=first_phase(len(token_ids), prompt_len, computed),
            shared=kv.shared_rows if kv else 0, computed=computed,
        )  # fmt: skip
        self._requests[rid] = request
        self._take(request, kv.rows if kv else ())

    def step(self, grant: Grant) -> StepResult:
        begun = time.monotonic()
        self._books.check_grant(grant, self._last_step)
        self._last_step = grant.step
        plan = plan_step(self._requests.values(), grant, self.geometry)
        prefill, decode = plan.tokens(Phase.PREFILL), plan.tokens(Phase.DECODE)
        used = self._take_leased(plan, grant.lease)
        outputs = self._run(plan)
        self._device.wait_idle()
        freed: list[Row] = []
        handoffs: dict[str, KVHandoff] = {}
        for output in outputs:
            if output.finish is not None:
                request = self._leave(output.rid)
                if request.detach:
                    handoffs[request.rid] = request.handoff(self.geometry)
                else:
                    freed.extend(request.private_rows)
        return StepResult(
            step=grant.step, outputs=outputs, handoffs=handoffs, prefill_tokens=prefill,
            decode_tokens=decode, used=used, freed=tuple(freed), starved=plan.starved,
            more=bool(self._requests),
            need_rows=rows_needed(self._requests.values(), self.geometry),
            elapsed_ms=(time.monotonic() - begun) * 1000.0,
        )  # fmt: skip

    def abort(self, rid: str) -> KVHandoff | None:
        return self._leave(rid).handoff(self.geometry) if rid in self._requests else None

    def stats(self) -> HostStats:
        running = sum(1 for request in self._requests.values() if request.computed)
        return HostStats(
            waiting=len(self._requests) - running,
            running=running,
            owned_rows=self._books.owned_rows,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            device_bytes=self._device.peak_bytes(),
            sms=self._device.sms(),
        )

    def close(self) -> None:
        # The mappings end with their last tensor.
        self._opened = None
        self._tables.clear()

    def _take(self, request: Request, rows: Sequence[Row]) -> None:
        """Makes `rows` the request's; adopted ones come before any leased one."""
        if not rows:
            return
        first = len(request.rows)
        request.rows.extend(rows)
        self._books.take(rows, shared=max(0, request.shared - first))
        table = self._kv.table(rows)
        known = self._tables.get(request.rid)
        self._tables[request.rid] = table if known is None else torch.cat([known, table])

    def _take_leased(self, plan: StepPlan, lease: Sequence[Row]) -> int:
        used = 0
        for chunk in plan.chunks:
            self._take(chunk.request, lease[used : used + chunk.rows])
            used += chunk.rows
        return used

    def _leave(self, rid: str) -> Request:
        request = self._requests.pop(rid)
        self._tables.pop(rid, None)
        self._books.drop(request.rows, shared=request.shared)
        return request

    def _run(self, plan: StepPlan) -> tuple[Output, ...]:
        """Runs the chunks and samples for those that are complete."""
        # One-token chunks are attended to together, those of like lengths: they come first.
        chunks = sorted(plan.chunks, key=lambda c: (c.tokens != 1, c.request.computed))
        if not chunks:
            return ()
        with torch.inference_mode():
            emitting = [chunk for chunk in chunks if chunk.emits]
            logits = self._forward(chunks)
            for chunk in chunks:
                chunk.request.computed += chunk.tokens
            return tuple(self._emit(emitting, logits))

    def _forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Scores for each chunk that emits, in order."""
        model = self._open().model
        attend = StepAttention(self._kv, [
            Span(start=c.request.computed, count=c.tokens, table=self._tables[c.request.rid])
            for c in chunks
        ])  # fmt: skip
        tokens = torch.tensor(list(chain.from_iterable(map(_tokens, chunks))), dtype=torch.int64,
                              device=self._kv.device)  # fmt: skip
        hidden = model.forward(tokens, attend.positions, attend)
        return model.logits(hidden[list(_last_positions(chunks))])

    def _emit(self, chunks: Sequence[Chunk], logits: torch.Tensor) -> Iterable[Output]:
        requests = [chunk.request for chunk in chunks]
        drawn = sample(logits, [self._draw(request) for request in requests])
        for request, token, scores in zip(requests, drawn, logits, strict=True):
            wanted = request.sampling.logprobs
            request.tokens.append(token)
            finish = self._finish(request, token)
            request.phase = Phase.DECODE
            yield Output(
                rid=request.rid, tokens=(token,), finish=finish,
                logprobs=() if wanted is None else (logprobs(scores, token, wanted),),
            )  # fmt: skip

    def _draw(self, request: Request) -> Draw:
        output, sampling = request.output, request.sampling
        vocab = self._start.config.geometry.vocab
        # A config may name an end that the vocabulary lacks; it is never drawn anyway.
        known = tuple(token for token in self._ends(sampling) if token < vocab)
        ends = known if len(output) < sampling.min_tokens else ()
        return Draw(sampling=sampling, prompt=request.prompt, output=output, ends=ends)

    def _ends(self, sampling: Sampling) -> tuple[int, ...]:
        """Tokens that end a text."""
        own = () if sampling.ignore_eos else self._start.config.eos_token_ids
        return (*sampling.stop_token_ids, *own)

    def _finish(self, request: Request, token: int) -> Finish | None:
        """Why the request leaves after `token`, if it does."""
        outputs = len(request.tokens) - request.prompt_len
        if token in self._ends(request.sampling):
            return Finish.STOP
        full = len(request.tokens) >= self._start.max_model_len
        if outputs >= request.sampling.max_tokens or full:
            return Finish.LENGTH
        prefills_only = Phase.DECODE not in self._start.settings.phases
        return Finish.HANDOFF if request.detach and prefills_only else None

    def _open(self) -> _Opened:
        if self._opened is None:
            raise EngineFault("torch engine: used before open or after close")
        return self._opened

    @property
    def _kv(self) -> PagedKv:
        return self._open().kv


def _tokens(chunk: Chunk) -> Sequence[int]:
    request = chunk.request
    return request.tokens[request.computed : request.computed + chunk.tokens]


def _last_positions(chunks: Sequence[Chunk]) -> Iterable[int]:
    """Where in the step's tokens each emitting chunk ends."""
    end = 0
    for chunk in chunks:
        end += chunk.tokens
        if chunk.emits:
            yield end - 1
