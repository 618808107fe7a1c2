"""The engine interface's values: what a scheduler grants and what a host answers.

A *row* is one KV block of a request: the ids of its runs for all layers. A *run* is
`KVGeometry.run_units` consecutive head units, named by the index of its first unit. A host never
searches the KV pool: it may only take the rows leased to it, in the order given, for one step.

The runtime's hosts and the simulator's engine both speak these values. Rules kept by
`mux_core.ledger`: rows owned after a step = before + adopted + used - freed - handed off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mux_core.errors import SpecError

Row = tuple[int, ...]
"""Run ids of one KV block, layer by layer."""


class Phase(StrEnum):
    """What a step may run."""

    PREFILL = "prefill"
    DECODE = "decode"


class Finish(StrEnum):
    """Why a request left its host."""

    STOP = "stop"
    LENGTH = "length"
    HANDOFF = "handoff"


@dataclass(frozen=True, slots=True, kw_only=True)
class KVGeometry:
    """How one tensor-parallel rank of a model lays its KV into head units.

    A head unit holds K *or* V of `block_tokens` tokens of one KV head of one layer. Runs hold
    `run_units` units in the order K0 V0 K1 V1 ...; `run_units` is `2 * kv_heads`.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    block_tokens: int
    run_units: int

    @property
    def itemsize(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def unit_bytes(self) -> int:
        return self.block_tokens * self.head_dim * self.itemsize

    @property
    def row_runs(self) -> int:
        """Run ids in a row."""
        return 2 * self.layers * self.kv_heads // self.run_units

    @property
    def row_units(self) -> int:
        """Head units in a row."""
        return 2 * self.layers * self.kv_heads

    def rows_for(self, tokens: int) -> int:
        """Rows that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)


def kv_geometry(
    *, layers: int, kv_heads: int, head_dim: int, dtype: str, unit_bytes: int
) -> KVGeometry:
    """The layout of a model in a pool of `unit_bytes` head units.

    Tokens per block are a power of two, as many as fit. Raises SpecError when not one fits.
    """
    per_token = head_dim * (4 if dtype == "float32" else 2)
    if per_token > unit_bytes:
        raise SpecError(f"head unit of {unit_bytes} bytes holds no token of head_dim {head_dim} "
                        f"in {dtype} ({per_token} bytes); use a larger unit")  # fmt: skip
    block_tokens = 1 << ((unit_bytes // per_token).bit_length() - 1)
    return KVGeometry(layers=layers, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype,
                      block_tokens=block_tokens, run_units=2 * kv_heads)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class KVHandoff:
    """Rows of a request on their way from one owner to another; only ids travel.

    `rows` in token order, the last may be part-filled; `num_tokens` is how many tokens' K and V
    are written; the first `shared_rows` are read-only (prefix cache).
    """

    geometry: KVGeometry
    rows: tuple[Row, ...]
    num_tokens: int
    shared_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw tokens; names and meanings as vLLM's SamplingParams.

    A draw depends on (`seed`, output index) only. `logprobs` = how many alternatives to report
    (None: none at all; 0: only the chosen token's).
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Leave for one host to run one step; valid until its result arrives."""

    step: int
    phases: frozenset[Phase]
    token_budget: int
    max_seqs: int
    lease: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One token's log probability and its alternatives, most likely first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """New tokens of one request from one step."""

    rid: str
    tokens: tuple[int, ...]
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step did.

    `used`: how many leading rows of the lease the host now owns. `starved`: work was held for
    lack of rows; `more`: any work is left; `need_rows`: rows that let every request take its next
    step. `elapsed_ms`: grant received until the device was idle.
    """

    step: int
    outputs: tuple[Output, ...] = ()
    handoffs: Mapping[str, KVHandoff] = field(default_factory=dict)
    prefill_tokens: int = 0
    decode_tokens: int = 0
    used: int = 0
    freed: tuple[Row, ...] = ()
    starved: bool = False
    more: bool = False
    need_rows: int = 0
    elapsed_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStats:
    """A host's own account of itself; lengths in requests, sizes in rows and bytes.

    `sms` is how many multiprocessors its GPU context sees and `device_bytes` the most GPU memory
    its allocator held; both 0 without a GPU.
    """

    waiting: int
    running: int
    owned_rows: int
    peak_bytes: int
    device_bytes: int = 0
    sms: int = 0
