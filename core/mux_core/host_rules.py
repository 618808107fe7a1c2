"""What every engine host refuses, and its books of rows; the same for all engines.

A refused request leaves the host, and the rows that came with it, as they were. A bad grant is
refused before any work.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Final

from mux_core.engine import Grant, KVGeometry, KVHandoff, Phase, Row, Sampling
from mux_core.errors import BadGrant, RequestRefused

MAX_LOGPROBS: Final = 20


def first_phase(tokens: int, prompt_len: int, computed: int) -> Phase:
    """DECODE if all but the last token are computed and that one is an output."""
    return Phase.DECODE if computed == tokens - 1 >= prompt_len else Phase.PREFILL


def check_request(
    rid: str, tokens: Sequence[int], sampling: Sampling, *, prompt_len: int, vocab: int,
    longest: int,
) -> None:  # fmt: skip
    """Raises RequestRefused for what a model of that vocabulary and length can never serve."""
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


def check_sampling(sampling: Sampling, vocab: int) -> None:
    """Raises RequestRefused for a value outside its limits."""
    s = sampling
    limits = (
        ("max_tokens", s.max_tokens, s.max_tokens >= 1, "at least 1"),
        ("temperature", s.temperature, 0 <= s.temperature <= 100, "0 to 100"),
        ("top_p", s.top_p, 0 < s.top_p <= 1, "above 0, at most 1"),
        ("top_k", s.top_k, s.top_k >= -1, "at least 1; 0 or -1 for all"),
        ("min_p", s.min_p, 0 <= s.min_p <= 1, "0 to 1"),
        ("presence_penalty", s.presence_penalty, -2 <= s.presence_penalty <= 2, "-2 to 2"),
        ("frequency_penalty", s.frequency_penalty, -2 <= s.frequency_penalty <= 2, "-2 to 2"),
        ("repetition_penalty", s.repetition_penalty, 0 < s.repetition_penalty <= 100,
         "above 0, at most 100"),
        ("min_tokens", s.min_tokens, 0 <= s.min_tokens <= s.max_tokens,
         f"0 to max_tokens ({s.max_tokens})"),
        ("logprobs", s.logprobs, s.logprobs is None or 0 <= s.logprobs <= MAX_LOGPROBS,
         f"0 to {MAX_LOGPROBS}"),
        ("stop_token_ids", s.stop_token_ids, all(0 <= x < vocab for x in s.stop_token_ids),
         f"ids of 0 to {vocab - 1}"),
    )  # fmt: skip
    for name, value, fits, limit in limits:
        if not fits:
            raise RequestRefused(f"sampling: {name} is {value}; use {limit}")


class RowBooks:
    """Rows a host holds in a pool of `units` head units: its own, and shared ones it only reads."""

    def __init__(self, geometry: KVGeometry, units: int) -> None:
        self._geometry = geometry
        self._units = units
        self._owned: set[int] = set()
        self._shared: Counter[int] = Counter()

    @property
    def owned_rows(self) -> int:
        return len(self._owned) // self._geometry.row_runs

    def take(self, rows: Sequence[Row], *, shared: int = 0) -> None:
        """A request here holds `rows`; the first `shared` are not its own."""
        self._shared.update(chain.from_iterable(rows[:shared]))
        self._owned.update(chain.from_iterable(rows[shared:]))

    def drop(self, rows: Sequence[Row], *, shared: int = 0) -> None:
        self._owned.difference_update(chain.from_iterable(rows[shared:]))
        self._shared -= Counter(chain.from_iterable(rows[:shared]))

    def check_adopted(self, rid: str, kv: KVHandoff, tokens: int) -> None:
        """Raises RequestRefused for rows that a request of so many tokens cannot go on with."""
        geometry = self._geometry
        if kv.geometry != geometry:
            raise RequestRefused(f"request {rid}: its rows have {kv.geometry}, this host "
                                 f"{geometry}; hosts of one model agree")  # fmt: skip
        if not 0 <= kv.num_tokens < tokens:
            raise RequestRefused(f"request {rid}: KV of {kv.num_tokens} tokens for {tokens}; at "
                                 "least the last token must be left to run")  # fmt: skip
        if len(kv.rows) < geometry.rows_for(kv.num_tokens):
            raise RequestRefused(f"request {rid}: {len(kv.rows)} rows do not hold the KV of "
                                 f"{kv.num_tokens} tokens")  # fmt: skip
        if not 0 <= kv.shared_rows * geometry.block_tokens <= kv.num_tokens:
            raise RequestRefused(f"request {rid}: {kv.shared_rows} shared rows, KV of "
                                 f"{kv.num_tokens}; only filled rows are shared")  # fmt: skip
        private = self._runs(kv.rows[kv.shared_rows :])
        shared = self._runs(kv.rows[: kv.shared_rows])
        if private is None or shared is None or private & shared:
            raise RequestRefused(f"request {rid}: its rows are not rows of this pool, each named "
                                 "once")  # fmt: skip
        if private & (self._owned | self._shared.keys()) or shared & self._owned:
            raise RequestRefused(f"request {rid}: one of its rows belongs to another request here")

    def check_grant(self, grant: Grant, last_step: int | None) -> None:
        """Raises BadGrant for a grant that cannot follow `last_step` or leases what is held."""
        if last_step is not None and grant.step != last_step + 1:
            raise BadGrant(f"grant: step {grant.step} after {last_step}; they count by one")
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
        width = self._geometry.row_runs
        runs = set(chain.from_iterable(rows))
        whole = all(len(row) == width for row in rows) and len(runs) == len(rows) * width
        last = self._units - self._geometry.run_units
        return runs if whole and (not runs or 0 <= min(runs) <= max(runs) <= last) else None
