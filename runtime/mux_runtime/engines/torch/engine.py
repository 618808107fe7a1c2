"""The torch engine: `EngineHost` over a dense model and the shared KV arena."""

import resource
import time
from collections import Counter
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
from mux_runtime.engines.host import (
    BadGrant,
    EngineFault,
    PoolHandle,
    RequestRefused,
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
    first_phase,
    plan_step,
    rows_needed,
)
from mux_runtime.engines.torch.sampler import Draw, check_sampling, logprobs, sample
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
        self._owned: set[int] = set()
        self._shared: Counter[int] = Counter()
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
        self._opened = _Opened(model=model, kv=kv)
        model.warm_up()
        on.wait_idle()

    def add(self, rid: str, token_ids: Sequence[int], sampling: Sampling, *, prompt_len: int,
            kv: KVHandoff | None = None, detach: bool = False) -> None:  # fmt: skip
        self._check_request(rid, token_ids, sampling, prompt_len)
        if kv is not None:
            self._check_adopted(rid, kv, len(token_ids))
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
        self._check_grant(grant)
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
            owned_rows=len(self._owned) // self.geometry.row_runs,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            device_bytes=self._device.peak_bytes(),
            sms=self._device.sms(),
        )

    def close(self) -> None:
        # The mappings end with their last tensor.
        self._opened = None
        self._tables.clear()

    def _check_request(
        self, rid: str, tokens: Sequence[int], sampling: Sampling, prompt_len: int
    ) -> None:
        vocab, longest = self._start.config.geometry.vocab, self._start.max_model_len
        if rid in self._requests:
            raise RequestRefused(f"request {rid}: is on this host already; choose another id")
        if not 1 <= prompt_len <= len(tokens):
            raise RequestRefused(f"request {rid}: prompt_len {prompt_len} of {len(tokens)} tokens; "
                                 "use 1 to their number")  # fmt: skip
        if len(tokens) >= longest:
            raise RequestRefused(f"request {rid}: {len(tokens)} tokens; the model reads at most "
                                 f"{longest}, one of them new; shorten the prompt")  # fmt: skip
        if not 0 <= min(tokens) <= max(tokens) < vocab:
            raise RequestRefused(f"request {rid}: token ids {min(tokens)} to {max(tokens)}; the "
                                 f"model has 0 to {vocab - 1}")  # fmt: skip
        check_sampling(sampling, vocab)
        if len(tokens) - prompt_len >= sampling.max_tokens:
            raise RequestRefused(f"request {rid}: has {len(tokens) - prompt_len} of max_tokens "
                                 f"{sampling.max_tokens} outputs already")  # fmt: skip

    def _check_adopted(self, rid: str, kv: KVHandoff, tokens: int) -> None:
        if kv.geometry != self.geometry:
            raise RequestRefused(f"request {rid}: its rows have {kv.geometry}, this host "
                                 f"{self.geometry}; hosts of one model agree")  # fmt: skip
        if not 0 <= kv.num_tokens < tokens:
            raise RequestRefused(f"request {rid}: KV of {kv.num_tokens} tokens for {tokens}; at "
                                 "least the last token must be left to run")  # fmt: skip
        if len(kv.rows) < self.geometry.rows_for(kv.num_tokens):
            raise RequestRefused(f"request {rid}: {len(kv.rows)} rows do not hold the KV of "
                                 f"{kv.num_tokens} tokens")  # fmt: skip
        if not 0 <= kv.shared_rows * self.geometry.block_tokens <= kv.num_tokens:
            raise RequestRefused(f"request {rid}: {kv.shared_rows} shared rows, KV of "
                                 f"{kv.num_tokens}; only filled rows are shared")  # fmt: skip
        private = self._runs(kv.rows[kv.shared_rows :])
        shared = self._runs(kv.rows[: kv.shared_rows])
        if private is None or shared is None or private & shared:
            raise RequestRefused(f"request {rid}: its rows are not rows of this pool, each named "
                                 "once")  # fmt: skip
        if private & (self._owned | self._shared.keys()) or shared & self._owned:
            raise RequestRefused(f"request {rid}: one of its rows belongs to another request here")

    def _check_grant(self, grant: Grant) -> None:
        if self._last_step is not None and grant.step != self._last_step + 1:
            raise BadGrant(f"grant: step {grant.step} after {self._last_step}; they count by one")
        if grant.token_budget < 0 or grant.max_seqs < 0:
            raise BadGrant(f"grant {grant.step}: token_budget {grant.token_budget}, max_seqs "
                           f"{grant.max_seqs}; at least 0")  # fmt: skip
        leased = self._runs(grant.lease)
        if leased is None:
            raise BadGrant(f"grant {grant.step}: its lease holds no rows of this pool, each named "
                           "once")  # fmt: skip
        if not leased.isdisjoint(self._owned) or not leased.isdisjoint(self._shared):
            raise BadGrant(f"grant {grant.step}: it leases a row that a request here holds")

    def _runs(self, rows: Sequence[Row]) -> set[int] | None:
        """All run ids of `rows`; None unless each is a run of this pool and named once."""
        width = self.geometry.row_runs
        runs = set(chain.from_iterable(rows))
        whole = all(len(row) == width for row in rows) and len(runs) == len(rows) * width
        last = self._kv.units - self.geometry.run_units
        return runs if whole and (not runs or 0 <= min(runs) <= max(runs) <= last) else None

    def _take(self, request: Request, rows: Sequence[Row]) -> None:
        """Makes `rows` the request's; adopted ones come before any leased one."""
        if not rows:
            return
        first = len(request.rows)
        request.rows.extend(rows)
        shared = request.rows[first : request.shared]
        self._shared.update(chain.from_iterable(shared))
        self._owned.update(chain.from_iterable(rows[len(shared) :]))
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
        self._owned.difference_update(chain.from_iterable(request.private_rows))
        self._shared -= Counter(chain.from_iterable(request.rows[: request.shared]))
        return request

    def _run(self, plan: StepPlan) -> tuple[Output, ...]:
        """Runs the chunks and samples for those that are complete."""
        # One-token chunks are attended to together, so they come first whatever their phase.
        chunks = sorted(plan.chunks, key=lambda chunk: chunk.tokens != 1)
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
