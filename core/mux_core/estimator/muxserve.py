"""MuxServe's throughput estimator, exactly as released, every known oddity behind a switch.

Prefills of a unit serialise, decodes do not disturb each other: a member with batch b serves
b / (decode step * output tokens + sum of the prefills of all members). Memory is counted in their
GB as floats, because the published scores depend on where those round.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Self

from mux_core.costmodel.table import StepTable, shipped_tables
from mux_core.errors import SpecError
from mux_core.estimator.curves import Curve, decode_curve, prefill_curve

GPU_GB = 80.0
KV_FRACTION = 0.98
ACTIVATION_GB = 6.0
PROMPT_TOKENS = 161.0
OUTPUT_TOKENS = 337.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRules:
    """Which behaviours of the released planner are on; all on is the release.

    `stale_mesh_index`: gains compare with the score of whichever mesh last held that list
    position. `running_mean_decode`: a cell's decode time is the mean of the rows so far.
    `ceil_batch`: the next larger measured batch, not interpolation. `occupied_kv`: the occupied
    share of memory taken as the KV room of a candidate. `fixed_lengths`: 161/337 tokens whatever
    the LLM states. `full_cap_zero`: a unit that starts at its batch caps scores 0.
    `uncapped_mean_score`: sum(r*t)/sum(r) with t above r counted.
    """

    stale_mesh_index: bool = True
    running_mean_decode: bool = True
    ceil_batch: bool = True
    occupied_kv: bool = True
    fixed_lengths: bool = True
    full_cap_zero: bool = True
    uncapped_mean_score: bool = True

    def with_switches(self, switches: dict[str, bool]) -> Self:
        """These rules with some switches set. Raises SpecError for an unknown switch."""
        known = [switch.name for switch in fields(self)]
        for name in switches:
            if name not in known:
                raise SpecError(f"switch {name}: unknown; one of {', '.join(known)}")
        return replace(self, **switches)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceModel:
    """Step times and constants of one LLM, as the released planner holds them for each LLaMA."""

    name: str
    table: StepTable = field(repr=False, compare=False)
    weights_gb: float
    kv_gb_per_token: float
    overhead_s: float
    least_tensor: int
    rate_scale: int


_LLAMAS = (
    ("llama-7b", 14.0, 32, 4096, 1e-4, 1, 1),
    ("llama-13b", 26.0, 40, 5120, 8e-5, 1, 2),
    ("llama-30b", 60.0, 60, 6656, 7e-5, 2, 4),
    ("llama-65b", 130.0, 80, 8192, 7e-5, 4, 8),
)
PROFILES = tuple(llama[0] for llama in _LLAMAS)


@cache
def reference_model(profile: str) -> ReferenceModel:
    """The constants of one shipped profile. Raises SpecError for a name that is not shipped."""
    for name, weights, layers, hidden, overhead, least, scale in _LLAMAS:
        if name == profile:
            return ReferenceModel(
                name=name,
                table=shipped_tables()[name],
                weights_gb=weights,
                kv_gb_per_token=layers * hidden * 4 / 2**30,
                overhead_s=overhead,
                least_tensor=least,
                rate_scale=scale,
            )
    raise SpecError(f"profile {profile}: unknown; one of {', '.join(PROFILES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The decode share one LLM wants at one degree, with the batch and rate it then reaches."""

    tensor: int
    percent: int
    batch: int
    throughput: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One LLM as this estimator sees it: its constants, its rate and its lengths."""

    name: str
    model: ReferenceModel
    rate: float
    prompt_tokens: float = PROMPT_TOKENS
    output_tokens: float = OUTPUT_TOKENS

    @property
    def kv_gb_per_sequence(self) -> float:
        return self.model.kv_gb_per_token * (self.prompt_tokens + self.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshScore:
    """Score of one mesh and the throughput of each member at its best batch vector."""

    score: float
    throughputs: tuple[float, ...]


@dataclass(slots=True)
class MuxServeEstimator:
    """The released rules as functions; the dictionaries only remember answers."""

    rules: ReplayRules = field(default_factory=ReplayRules)
    _curves: dict[tuple[str, int, int, float, float], Curve] = field(default_factory=dict)

    def curve(self, tenant: Tenant, tensor: int, percent: int) -> Curve:
        """Step times of `tenant` at one degree and decode share."""
        key = (tenant.model.name, tensor, percent, tenant.prompt_tokens, tenant.output_tokens)
        if key not in self._curves:
            table = tenant.model.table
            batches, decode_s = decode_curve(
                table,
                tensor=tensor,
                percent=percent,
                tokens=tenant.output_tokens,
                running_mean=self.rules.running_mean_decode,
            )
            self._curves[key] = Curve(
                batches=batches,
                decode_s=decode_s,
                prefill_s=prefill_curve(table, tensor=tensor, tokens=tenant.prompt_tokens),
                overhead_s=tenant.model.overhead_s,
                output_tokens=tenant.output_tokens,
                interpolate=not self.rules.ceil_batch,
            )
        return self._curves[key]

    def cap(self, tenant: Tenant, curve: Curve, kv_gb: float) -> int:
        """Largest batch: what the KV holds, at most the largest measured batch."""
        return min(int(kv_gb // tenant.kv_gb_per_sequence), curve.batches[-1])

    def search(self, tenant: Tenant, curve: Curve, kv_gb: float) -> tuple[float, float, bool]:
        """(batch, throughput, satisfied) of the last batch a bisection for the rate tests."""
        low, high = 1.0, float(max(2, self.cap(tenant, curve, kv_gb)))
        batch = throughput = 0.0
        while high - low >= 1:
            batch = (low + high) / 2
            spent = curve.decode_time(batch) * tenant.output_tokens + curve.prefill_time(batch)
            throughput = batch / spent
            if throughput >= tenant.rate:
                high = batch
            else:
                low = batch
        if throughput + slack(throughput) > tenant.rate:
            return batch, tenant.rate, True
        return batch, throughput, False

    def candidate(self, tenant: Tenant, tensor: int, kv_gb: float) -> Candidate:
        """The smallest decode share that meets the rate, else the one with most throughput."""
        best: Candidate | None = None
        for percent in range(30, 100, 10):
            curve = self.curve(tenant, tensor, percent)
            batch, throughput, satisfied = self.search(tenant, curve, kv_gb)
            found = Candidate(
                tensor=tensor, percent=percent, batch=int(batch), throughput=throughput
            )
            if satisfied:
                return found
            if best is None or throughput > best.throughput:
                best = found
        assert best is not None
        return best

    def mesh_score(self, gpus: int, members: Sequence[tuple[Tenant, int]]) -> MeshScore:
        """Grows batches from the candidates' start, neediest member first; keeps the best seen."""
        tenants = [tenant for tenant, _ in members]
        curves = [self.curve(tenant, gpus, percent) for tenant, percent in members]
        kv = kv_split(gpus, tenants)
        caps = [self.cap(t, c, k) for t, c, k in zip(tenants, curves, kv, strict=True)]
        starts = [int(self.search(t, c, k)[0]) for t, c, k in zip(tenants, curves, kv, strict=True)]
        return self._grow(tenants, curves, caps, starts)

    def _grow(
        self, tenants: list[Tenant], curves: list[Curve], caps: list[int], batches: list[int]
    ) -> MeshScore:
        best = MeshScore(score=0.0, throughputs=(0.0,) * len(tenants))
        first = True
        while True:
            full = all(batch >= cap for batch, cap in zip(batches, caps, strict=True))
            if full and (self.rules.full_cap_zero or not first or 0 in caps):
                return best
            served = throughputs(curves, batches)
            score = self._score(tenants, served)
            if score > best.score:
                best = MeshScore(score=score, throughputs=tuple(served))
            grown = _neediest(tenants, served, batches, caps)
            if grown is None:
                return best
            batches[grown] += 1
            first = False

    def _score(self, tenants: list[Tenant], served: list[float]) -> float:
        if self.rules.uncapped_mean_score:
            return mean_score([tenant.rate for tenant in tenants], served)
        return sum(min(t, tenant.rate) for tenant, t in zip(tenants, served, strict=True))


def slack(throughput: float) -> float:
    """How far below its rate the released planner calls an LLM satisfied."""
    return min(0.5, 0.1 * throughput)


def mean_score(rates: Sequence[float], served: Sequence[float]) -> float:
    """MuxServe's score: the rate-weighted mean throughput."""
    return sum(r * t for r, t in zip(rates, served, strict=True)) / sum(rates)


def kv_split(gpus: int, tenants: Sequence[Tenant], gpu_gb: float = GPU_GB) -> list[float]:
    """GB of KV per member of a mesh, in proportion to rate x KV per token."""
    weights = sum(tenant.model.weights_gb for tenant in tenants)
    room = max(0.0, KV_FRACTION * gpu_gb * gpus - weights - ACTIVATION_GB * len(tenants))
    wants = [tenant.rate * tenant.model.kv_gb_per_token for tenant in tenants]
    return [room * want / (sum(wants) or 1.0) for want in wants]


def throughputs(curves: Sequence[Curve], batches: Sequence[int]) -> list[float]:
    """Requests/s of each member at a batch vector."""
    prefill = sum(c.prefill_time(b) for c, b in zip(curves, batches, strict=True))
    return [
        batch / (curve.decode_time(batch) * curve.output_tokens + prefill)
        for curve, batch in zip(curves, batches, strict=True)
    ]


def _neediest(
    tenants: list[Tenant], served: list[float], batches: list[int], caps: list[int]
) -> int | None:
    """Index of the unsatisfied member below its cap with the smallest t/r; the first on ties."""
    found: int | None = None
    least = 0.0
    for index, (tenant, t) in enumerate(zip(tenants, served, strict=True)):
        if t + slack(t) >= tenant.rate or batches[index] >= caps[index]:
            continue
        if found is None or t / tenant.rate < least:
            found, least = index, t / tenant.rate
    return found
