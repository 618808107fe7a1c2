"""Which requests a step takes, how many KV rows a member needs, and who gives rows back first.

What a unit works out before and after a round, as pure functions: the unit scheduler calls them on
its requests, the simulator on its own. Rows as in `mux_core.engine`.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, Protocol, TypeVar

from mux_core.adbs import Limits

QUEUE_SEEN: Final = 64
"""Waiting requests that count for a member's wish; more would not change who is short."""


class Sequenced(Protocol):
    """A request: `length` tokens so far, prompt and output, K and V of `computed` written."""

    @property
    def length(self) -> int: ...

    @property
    def computed(self) -> int: ...


Request = TypeVar("Request", bound=Sequenced)


def rows_for(tokens: int, block_tokens: int) -> int:
    """Rows that hold `tokens` tokens."""
    return -(-tokens // block_tokens)


def prefill_batch(
    residents: Iterable[Request], queue: Iterable[Request], *, limits: Limits, running: int,
    block_tokens: int,
) -> tuple[list[Request], list[int]]:  # fmt: skip
    """Requests of the next prefill step in order, and the rows each needs in it.

    Those already on the host come first; then the queue, while tokens fit the budget and seats are
    free. A request longer than the budget goes over several steps.
    """
    chosen: list[Request] = []
    rows: list[int] = []
    budget = limits.prefill_tokens
    for request in residents:
        if budget <= 0:
            return chosen, rows
        budget -= _take(request, budget, block_tokens, chosen, rows)
    for request in islice(queue, max(0, limits.max_seqs - running)):
        if budget <= 0 or (chosen and request.length - request.computed > budget):
            break
        budget -= _take(request, budget, block_tokens, chosen, rows)
    return chosen, rows


def _take(
    request: Request, budget: int, block_tokens: int, chosen: list[Request], rows: list[int]
) -> int:
    tokens = min(request.length - request.computed, budget)
    have = rows_for(request.computed, block_tokens)
    chosen.append(request)
    rows.append(rows_for(request.computed + tokens, block_tokens) - have)
    return tokens


def covered(rows: Iterable[int], leased: int) -> int:
    """How many requests of a batch, from its head, `leased` rows are enough for."""
    count = 0
    for need in rows:
        leased -= need
        if leased < 0:
            break
        count += 1
    return count


def head_rows(first_rows: int, first: Sequenced, *, resident: bool, starved_rows: int,
              block_tokens: int) -> int:  # fmt: skip
    """Rows without which the first of the batch is not worth starting."""
    if resident:
        return max(first_rows, starved_rows and 1)
    return rows_for(first.length, block_tokens)


def growing_rows(at_edge: int, decoding: int, starved_rows: int) -> int:
    """Rows with which every decoding request can write its last token's K and V.

    `at_edge`: requests whose blocks are full (`is_at_edge`).
    """
    return min(decoding, max(at_edge, starved_rows))


def is_at_edge(length: int, block_tokens: int) -> bool:
    """Whether a decoding request of that length needs a new row for its next step."""
    return (length - 1) % block_tokens == 0


def wanted_rows(
    growing: int, decoding: int, queue: Iterable[Sequenced], prefilling: Iterable[Sequenced],
    *, block_tokens: int,
) -> int:  # fmt: skip
    """Rows that would let everything of a member run. `decoding`: requests on the decode host."""
    rows = growing + decoding // 4 + 1
    for request in islice(queue, QUEUE_SEEN):
        rows += rows_for(request.length, block_tokens)
    for request in prefilling:
        rows += rows_for(request.length, block_tokens) - rows_for(request.computed, block_tokens)
    return rows


def victims(
    running: Sequence[Request], units: int, *, row_units: int, block_tokens: int
) -> list[Request]:
    """Who gives back at least `units`: of `running`, youngest first, all but the last if many."""
    chosen: list[Request] = []
    for request in running[: max(1, len(running) - 1)]:
        if units <= 0:
            break
        units -= rows_for(request.length, block_tokens) * row_units
        chosen.append(request)
    return chosen
