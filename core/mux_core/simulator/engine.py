"""What one engine host does in a step, on a calendar: a decode step costs O(1), not O(batch).

All decoding requests of a host advance together, so a request's length is its length when it came
plus the steps made since. When it will end is known when it comes, and so is on which steps, one
in `block_tokens`, it needs a new row. A request that is held, for lack of rows or because the
grant does not reach it, falls one step behind: its two calendar entries move, nothing else does.

The rules are those of `mux_core.engine`: decodes first, then prefills in the order they came; a
request short of rows runs what its rows hold, or waits; nothing is evicted. Tokens and row ids are
not here: `host` adds them where somebody looks at them, and the unit on its virtual clock does not.
"""

from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from mux_core.batching import rows_for
from mux_core.engine import Phase

BOTH = frozenset(Phase)


@dataclass(slots=True, eq=False)
class Sequence:
    """A request as an engine sees it: lengths in tokens.

    `length`: prompt and output so far, current while it does not decode. `computed`: tokens whose
    K and V are written. `output`: tokens it will have generated when it ends. `place`: in the order
    in which its host got its requests. `since` and `ends_at` count the steps of that host.
    """

    order: int
    prompt: int
    output: int
    length: int
    computed: int = 0
    place: int = 0
    since: int = 0
    ends_at: int = 0


Seq = TypeVar("Seq", bound=Sequence)


@dataclass(slots=True)
class Step(Generic[Seq]):
    """What a step did. `prefilled`: (request, tokens, new rows) in order; `emitted`: those of them
    that gave a token; `finished`: gave their last one and are gone; `held`: decodes not advanced.
    """

    decoded: int = 0
    prefill_tokens: int = 0
    used: int = 0
    starved: bool = False
    prefilled: abc.Sequence[tuple[Seq, int, int]] = ()
    emitted: abc.Sequence[Seq] = ()
    finished: abc.Sequence[Seq] = ()
    held: abc.Sequence[Seq] = ()


class Engine(Generic[Seq]):
    """The requests of one host and the rows they own, as numbers.

    `prefilling` and `decoding` in the order the requests came; `steps`: decode steps made;
    `context`: sum of lengths over `decoding`; `rows`: owned by all requests here.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.prefilling: dict[Seq, None] = {}
        self.decoding: dict[Seq, None] = {}
        self.steps = 0
        self.context = 0
        self.rows = 0
        self._places = 0
        self._edges: list[dict[Seq, None]] = [{} for _ in range(block_tokens)]
        self._ends: dict[int, list[Seq]] = {}

    @property
    def requests(self) -> Iterator[Seq]:
        yield from self.prefilling
        yield from self.decoding

    @property
    def at_edge(self) -> dict[Seq, None]:
        """Decoding requests that need a new row for their next step. Valid until that step."""
        return self._edges[self.steps % self.block_tokens]

    @property
    def rows_needed(self) -> int:
        """Rows with which every request could give its next token."""
        block = self.block_tokens
        prompts = sum(rows_for(r.length, block) - rows_for(r.computed, block)
                      for r in self.prefilling)  # fmt: skip
        return prompts + len(self.at_edge)

    def length_of(self, request: Seq) -> int:
        """Tokens of a request so far."""
        if request in self.decoding:
            return request.length + self.steps - request.since
        return request.length

    def rows_of(self, request: Seq) -> int:
        """Rows a request here owns."""
        decodes = request in self.decoding
        computed = self.length_of(request) - 1 if decodes else request.computed
        return rows_for(computed, self.block_tokens)

    def add(self, request: Seq) -> None:
        """Takes a request; the rows of its `computed` tokens become this host's."""
        self.rows += rows_for(request.computed, self.block_tokens)
        self._places += 1
        request.place = self._places
        if request.computed == request.length - 1 >= request.prompt:
            self._join(request)
        else:
            self.prefilling[request] = None

    def remove(self, request: Seq) -> int:
        """Forgets a request, whose lengths are current then; the rows it owned."""
        if request in self.decoding:
            self._leave(request)
        else:
            del self.prefilling[request]
        rows = rows_for(request.computed, self.block_tokens)
        self.rows -= rows
        return rows

    def step(
        self, *, rows: int, budget: int, seats: int, phases: frozenset[Phase] = BOTH
    ) -> Step[Seq]:  # fmt: skip
        """Runs at most `budget` tokens of at most `seats` requests on at most `rows` new rows."""
        done: Step[Seq] = Step()
        if self.decoding and Phase.DECODE in phases:
            most = min(budget, seats)
            if len(self.decoding) <= most and len(self.at_edge) <= rows:
                self._decode_all(done)
            else:
                self._decode_some(done, rows, most)
        if self.prefilling and Phase.PREFILL in phases:
            self._prefill(done, rows=rows - done.used, budget=budget - done.decoded,
                          seats=seats - done.decoded)  # fmt: skip
        self.rows += done.used
        return done

    def refresh(self) -> None:
        """Makes the lengths of all decoding requests current."""
        for request in self.decoding:
            request.length += self.steps - request.since
            request.since = self.steps

    def _decode_all(self, done: Step[Seq]) -> None:
        done.decoded = len(self.decoding)
        done.used = len(self.at_edge)
        self._advance(done)

    def _decode_some(self, done: Step[Seq], rows: int, most: int) -> None:
        """Some requests are held: those beyond the grant, and at an edge those without a row."""
        at_edge = self.at_edge
        held: list[Seq] = []
        done.held = held
        for request in sorted(self.decoding, key=lambda r: r.place):
            if done.decoded >= most:
                held.append(request)
            elif request not in at_edge:
                done.decoded += 1
            elif done.used < rows:
                done.decoded += 1
                done.used += 1
            else:
                done.starved = True
                held.append(request)
        if not done.decoded:
            return
        for request in held:
            self._unmark(request)
            request.since += 1
            request.ends_at += 1
            self._mark(request)
        self._advance(done)

    def _advance(self, done: Step[Seq]) -> None:
        self.steps += 1
        self.context += done.decoded
        ends = self._ends.pop(self.steps, None)
        if ends is None:
            return
        finished: list[Seq] = []
        for request in ends:
            # Entries of former stays and of places it was held at are void.
            if request.ends_at == self.steps and request in self.decoding:
                finished.append(request)
                request.ends_at = 0
        done.finished = finished

    def prefill_plan(
        self, *, rows: int, budget: int, seats: int
    ) -> tuple[list[tuple[Seq, int, int]], bool]:  # fmt: skip
        """(request, tokens, new rows) of a prefill step, and whether any lacks rows.

        Changes nothing. A request short of rows runs what its rows hold, or waits.
        """
        plan: list[tuple[Seq, int, int]] = []
        block, starved = self.block_tokens, False
        for request in self.prefilling:
            if budget <= 0 or len(plan) >= seats:
                break
            owned = rows_for(request.computed, block)
            wanted = min(request.length - request.computed, budget)
            tokens = min(wanted, (owned + rows) * block - request.computed)
            starved |= tokens < wanted
            if tokens <= 0:
                continue
            taken = rows_for(request.computed + tokens, block) - owned
            plan.append((request, tokens, taken))
            rows, budget = rows - taken, budget - tokens
        return plan, starved

    def _prefill(self, done: Step[Seq], *, rows: int, budget: int, seats: int) -> None:
        done.prefilled, starved = self.prefill_plan(rows=rows, budget=budget, seats=seats)
        done.starved |= starved
        for request, tokens, taken in done.prefilled:
            request.computed += tokens
            done.prefill_tokens += tokens
            done.used += taken
        emitted = [r for r, _, _ in done.prefilled if r.computed == r.length]
        done.emitted = emitted
        done.finished = [*done.finished, *(r for r in emitted if self._emits_last(r))]

    def _emits_last(self, request: Seq) -> bool:
        """Gives the token after a prefill; unless it was the last one, decoding follows."""
        request.length += 1
        if request.length - request.prompt >= request.output:
            return True
        del self.prefilling[request]
        self._join(request)
        return False

    def _join(self, request: Seq) -> None:
        request.since = self.steps
        request.ends_at = self.steps + request.prompt + request.output - request.length
        self.decoding[request] = None
        self.context += request.length
        self._mark(request)

    def _leave(self, request: Seq) -> None:
        """Its lengths become current; what the calendar says of its end is now void."""
        self._unmark(request)
        request.length += self.steps - request.since
        request.computed = request.length - 1
        request.since = self.steps
        self.context -= request.length
        del self.decoding[request]

    def _mark(self, request: Seq) -> None:
        self._edges[self._edge(request)][request] = None
        self._ends.setdefault(request.ends_at, []).append(request)

    def _unmark(self, request: Seq) -> None:
        del self._edges[self._edge(request)][request]

    def _edge(self, request: Seq) -> int:
        """On steps of this number, counted by blocks, its last row is full."""
        return (request.since + 1 - request.length) % self.block_tokens
