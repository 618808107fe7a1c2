"""The requests of a host and what a grant lets them run; plain values, no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mux_core.engine import Grant, KVGeometry, KVHandoff, Phase, Row, Sampling


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One request on this host.

    `tokens` are prompt and output; K and V of the first `computed` lie in `rows`, whose first
    `shared` are read-only. In PREFILL until it emits a token, unless adopted ready to decode.
    """

    rid: str
    tokens: list[int]
    prompt_len: int
    sampling: Sampling
    detach: bool
    phase: Phase
    rows: list[Row] = field(default_factory=list)
    shared: int = 0
    computed: int = 0

    @property
    def remaining(self) -> int:
        """Tokens to run until the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def prompt(self) -> Sequence[int]:
        return self.tokens[: self.prompt_len]

    @property
    def output(self) -> Sequence[int]:
        return self.tokens[self.prompt_len :]

    @property
    def private_rows(self) -> tuple[Row, ...]:
        return tuple(self.rows[self.shared :])

    def handoff(self, geometry: KVGeometry) -> KVHandoff:
        return KVHandoff(geometry=geometry, rows=tuple(self.rows), num_tokens=self.computed,
                         shared_rows=self.shared)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What a request runs in a step, and how many rows it takes for that."""

    request: Request
    tokens: int
    rows: int

    @property
    def emits(self) -> bool:
        return self.tokens == self.request.remaining


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """The step's chunks: decodes first, then prefills in the order they were added."""

    chunks: tuple[Chunk, ...]
    starved: bool

    def tokens(self, phase: Phase) -> int:
        return sum(chunk.tokens for chunk in self.chunks if chunk.request.phase is phase)


def plan_step(requests: Iterable[Request], grant: Grant, geometry: KVGeometry) -> StepPlan:
    """Fills the grant. A request short of rows runs what its rows hold, or waits."""
    queued = list(requests)
    chunks: list[Chunk] = []
    budget, rows, starved = grant.token_budget, len(grant.lease), False
    for phase in (Phase.DECODE, Phase.PREFILL):
        if phase not in grant.phases:
            continue
        for request in queued:
            if request.phase is not phase:
                continue
            if budget <= 0 or len(chunks) >= grant.max_seqs:
                break
            wanted = min(request.remaining, budget)
            held = len(request.rows) + rows
            tokens = min(wanted, held * geometry.block_tokens - request.computed)
            starved |= tokens < wanted
            if tokens <= 0:
                continue
            taken = max(0, geometry.rows_for(request.computed + tokens) - len(request.rows))
            chunks.append(Chunk(request=request, tokens=tokens, rows=taken))
            budget -= tokens
            rows -= taken
    return StepPlan(chunks=tuple(chunks), starved=starved)


def rows_needed(requests: Iterable[Request], geometry: KVGeometry) -> int:
    """Rows with which every request could sample its next token."""
    return sum(max(0, geometry.rows_for(len(r.tokens)) - len(r.rows)) for r in requests)
