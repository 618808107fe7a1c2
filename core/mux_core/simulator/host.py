"""The simulator's engine as an engine host: the calendar of `engine`, with tokens and rows.

Keeps the interface of `mux_runtime.engines.host.EngineHost`, so that one conformance suite holds
the simulator to the rules of real engines. What runs in a step is decided by `Engine` alone; this
adds which rows a request holds, what lies in them and which tokens come out. A token is a pure
function of the sampling seed, the model, the prompt and its index; the prompt is read from the
rows, so a row that somebody else wrote to gives other tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

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
from mux_core.host_rules import RowBooks, check_request
from mux_core.simulator import engine as calendar
from mux_core.simulator.times import StepTimes


class KvNotes(Protocol):
    """What stands in the rows of a pool: one token id for the K and V of each token."""

    def write(self, row: Row, offset: int, token: int) -> None: ...

    def read(self, row: Row, offset: int) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SimModel:
    """What a host must know of its model. `longest`: prompt and output together."""

    name: str
    geometry: KVGeometry
    vocab: int
    longest: int
    eos_token_ids: tuple[int, ...] = ()


def token_at(index: int, prompt: Iterable[int], *, seed: int, model: str, vocab: int) -> int:
    """The output token of that index."""
    text = f"{seed}/{model}/{','.join(map(str, prompt))}/{index}"
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") % vocab


@dataclass(slots=True, kw_only=True, eq=False)
class _Guest(calendar.Sequence):
    """A request on this host: what the calendar needs not know of it."""

    rid: str
    tokens: list[int]
    sampling: Sampling
    detach: bool
    shared: int = 0
    rows: list[Row] = field(default_factory=list)

    def handoff(self, geometry: KVGeometry) -> KVHandoff:
        return KVHandoff(geometry=geometry, rows=tuple(self.rows), num_tokens=self.computed,
                         shared_rows=self.shared)  # fmt: skip


class SimHost:
    """One host of one model on a pool of `units` head units. `times`: how long its steps take."""

    def __init__(
        self, model: SimModel, notes: KvNotes, *, units: int,
        phases: frozenset[Phase] = calendar.BOTH, times: StepTimes | None = None,
    ) -> None:  # fmt: skip
        self._model = model
        self._notes = notes
        self._phases = phases
        self._times = times
        self._engine = calendar.Engine[_Guest](model.geometry.block_tokens)
        self._guests: dict[str, _Guest] = {}
        self._books = RowBooks(model.geometry, units)
        self._last_step: int | None = None

    @property
    def geometry(self) -> KVGeometry:
        return self._model.geometry

    def open(self, pool: object, weights: object, device: str) -> None:
        """There is nothing to load."""

    def close(self) -> None:
        """There is nothing to end."""

    def add(self, rid: str, token_ids: Sequence[int], sampling: Sampling, *, prompt_len: int,
            kv: KVHandoff | None = None, detach: bool = False) -> None:  # fmt: skip
        model = self._model
        if rid in self._guests:
            raise RequestRefused(f"request {rid}: is on this host already; choose another id")
        check_request(rid, token_ids, sampling, prompt_len=prompt_len, vocab=model.vocab,
                      longest=model.longest)  # fmt: skip
        if kv is not None:
            self._books.check_adopted(rid, kv, len(token_ids))
            if len(kv.rows) > model.geometry.rows_for(kv.num_tokens):
                raise RequestRefused(f"request {rid}: {len(kv.rows)} rows are more than the KV of "
                                     f"{kv.num_tokens} tokens fills")  # fmt: skip
        guest = _Guest(
            order=0, prompt=prompt_len, output=min(sampling.max_tokens, model.longest - prompt_len),
            length=len(token_ids), computed=kv.num_tokens if kv else 0, rid=rid,
            tokens=list(token_ids), sampling=sampling, detach=detach,
            shared=kv.shared_rows if kv else 0, rows=list(kv.rows) if kv else [],
        )  # fmt: skip
        self._guests[rid] = guest
        self._books.take(guest.rows, shared=guest.shared)
        self._engine.add(guest)

    def step(self, grant: Grant) -> StepResult:
        self._books.check_grant(grant, self._last_step)
        self._last_step = grant.step
        decoding = sorted(self._engine.decoding, key=lambda guest: guest.place)
        at_edge = set(self._engine.at_edge)
        context = self._engine.context
        done = self._engine.step(rows=len(grant.lease), budget=grant.token_budget,
                                 seats=grant.max_seqs, phases=grant.phases)  # fmt: skip
        lease = iter(grant.lease)
        advanced = []
        if done.decoded:
            held = set(done.held)
            advanced = [guest for guest in decoding if guest not in held]
        for guest in advanced:
            self._write(guest, len(guest.tokens) - 1, 1, lease, guest in at_edge)
        for guest, tokens, rows in done.prefilled:
            self._write(guest, guest.computed - tokens, tokens, lease, rows)
        ended = set(done.finished)
        outputs = [self._emit(guest, last=guest in ended) for guest in [*advanced, *done.emitted]]
        handoffs: dict[str, KVHandoff] = {}
        freed: list[Row] = []
        for output in outputs:
            if output.finish is None:
                continue
            guest = self._leave(output.rid)
            if guest.detach:
                handoffs[guest.rid] = guest.handoff(self.geometry)
            else:
                freed += guest.rows[guest.shared :]
        return StepResult(
            step=grant.step, outputs=tuple(outputs), handoffs=handoffs, used=done.used,
            prefill_tokens=done.prefill_tokens, decode_tokens=done.decoded, freed=tuple(freed),
            starved=done.starved, more=bool(self._guests), need_rows=self._engine.rows_needed,
            elapsed_ms=1000 * self._seconds(done, context),
        )  # fmt: skip

    def abort(self, rid: str) -> KVHandoff | None:
        return self._leave(rid).handoff(self.geometry) if rid in self._guests else None

    def stats(self) -> HostStats:
        running = sum(1 for guest in self._guests.values() if guest.computed)
        return HostStats(waiting=len(self._guests) - running, running=running,
                         owned_rows=self._books.owned_rows, peak_bytes=0)  # fmt: skip

    def _write(
        self, guest: _Guest, start: int, count: int, lease: Iterator[Row], rows: int
    ) -> None:  # fmt: skip
        """K and V of `count` tokens, on `rows` new rows where there is no room."""
        taken = [next(lease) for _ in range(rows)]
        guest.rows += taken
        self._books.take(taken)
        block = self.geometry.block_tokens
        for at in range(start, start + count):
            self._notes.write(guest.rows[at // block], at % block, guest.tokens[at])

    def _emit(self, guest: _Guest, *, last: bool) -> Output:
        sampling = guest.sampling
        ends = sampling.stop_token_ids
        if not sampling.ignore_eos:
            ends += self._model.eos_token_ids
        token = self._next_token(guest, ends)
        guest.tokens.append(token)
        finish = None
        if token in ends:
            finish = Finish.STOP
        elif last:
            finish = Finish.LENGTH
        elif guest.detach and Phase.DECODE not in self._phases:
            finish = Finish.HANDOFF
        return Output(rid=guest.rid, tokens=(token,), finish=finish)

    def _next_token(self, guest: _Guest, ends: Sequence[int]) -> int:
        block = self.geometry.block_tokens
        prompt = (self._notes.read(guest.rows[at // block], at % block)
                  for at in range(guest.prompt))  # fmt: skip
        index = len(guest.tokens) - guest.prompt
        token = token_at(index, prompt, seed=guest.sampling.seed, model=self._model.name,
                         vocab=self._model.vocab)  # fmt: skip
        while index < guest.sampling.min_tokens and token in ends:
            token = (token + 1) % self._model.vocab
        return token

    def _leave(self, rid: str) -> _Guest:
        guest = self._guests.pop(rid)
        self._engine.remove(guest)
        self._books.drop(guest.rows, shared=guest.shared)
        return guest

    def _seconds(self, done: "calendar.Step[_Guest]", context: int) -> float:
        if self._times is None:
            return 0.0
        seconds = 0.0
        if done.prefilled:
            seconds += self._times.prefill_s(len(done.prefilled), done.prefill_tokens)
        if done.decoded:
            share = done.decoded / (done.decoded + len(done.held))
            seconds += self._times.decode_s(done.decoded, int(context * share))
        return seconds
