"""What there is to measure: a grid of points per model, device share and pair. Plain values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mux_core.costmodel.profile_set import PairStep, percent_of
from mux_core.engine import Phase

QUICK_BATCHES: Final = (1, 2, 4, 8, 16, 32)
QUICK_CONTEXTS: Final = (64, 512)
QUICK_PROMPTS: Final = (1, 64, 256, 1024)
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS: Final = (64, 256, 1024, 4096, 16384)
PROMPTS: Final = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
PROMPT_BATCHES: Final = (1, 4)
STEP_TOKENS: Final = 2048
"""Prompts of one batch are prefilled in one step of at most so many tokens, as units do."""
PAIR_CONTEXT: Final = 256
PAIR_BATCH: Final = 4
PAIR_PROMPT: Final = 128
PASSES: Final = 3
MOST_PASSES: Final = 5
GPU_PERCENTS: Final = tuple(range(10, 101, 10))


class Kind(StrEnum):
    """What a point measures."""

    PREFILL = "prefill"
    DECODE = "decode"
    GRANT = "grant"
    HANDOFF = "handoff"
    MEMORY = "memory"
    PAIR = "pair"
    UNIT = "unit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One thing to measure; `key` names it in the journal, the same in every run."""

    kind: Kind
    model: str = ""
    percent: int = 100
    batch: int = 1
    tokens: int = 1
    pair: tuple[PairStep, PairStep] | None = None

    @property
    def key(self) -> str:
        if self.pair is not None:
            return "pair/" + "+".join(_side(side) for side in self.pair)
        return f"{self.kind}/{self.model}/{self.percent}/{self.batch}/{self.tokens}"

    @property
    def cost(self) -> float:
        """A guess of how long it takes, in any unit; for the time left."""
        match self.kind:
            case Kind.PREFILL:
                return 1 + self.batch * self.tokens / 200
            case Kind.DECODE:
                return 1 + self.batch * (1 + self.tokens / 2000) / 10
            case Kind.PAIR:
                return 8
            case Kind.UNIT:
                return 80
            case _:
                return 1


def _side(side: PairStep) -> str:
    return f"{side.model}:{side.phase}:{side.percent}:{side.batch}:{side.tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The points of a run in the order they are measured, once per pass; what is not settled
    after `passes` is visited again, up to `most_passes` times. Kinds in `once` are measured in the
    first pass alone."""

    points: tuple[Point, ...]
    passes: int
    most_passes: int
    once: frozenset[Kind]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to measure: the longest sequence it takes, and tokens of KV there is room for."""

    name: str
    max_model_len: int
    kv_tokens: int


def percents(device: str, cores: int) -> tuple[int, ...]:
    """Shares to measure: on a CPU one per number of threads, on a GPU every tenth."""
    if device != "cpu":
        return GPU_PERCENTS
    return tuple(percent_of(threads, cores) for threads in range(1, cores + 1))


def make_grid(
    subjects: Sequence[Subject], shares: Sequence[int], *, quick: bool, unit: bool,
    most_batch: int | None = None,
) -> Grid:  # fmt: skip
    """All points: steps of every model, the unit, pairs at the largest share that two can have."""
    points: list[Point] = []
    left_out: list[str] = []
    used = shares if not quick or len(shares) <= 2 else (shares[0], shares[-1])
    if tuple(used) != tuple(shares):
        left_out.append(f"shares other than {used[0]} and {used[-1]} % (--quick)")
    for subject in subjects:
        points += _steps(subject, used, quick=quick, most_batch=most_batch, left_out=left_out)
    half = [share for share in used if 2 * share <= 100]
    if unit:
        # Of one thread each, so that seconds of a core of its hosts are the length of their steps.
        points.append(Point(kind=Kind.UNIT, percent=shares[0]))
    if half:
        points += _pairs(subjects, half[-1])
    else:
        left_out.append("pairs: one core, two steps never run at once")
    # They take longest, and each compares what it times in turn: one visit says most of it.
    once = frozenset({Kind.UNIT, Kind.PAIR} if quick else ())
    return Grid(points=tuple(points), passes=PASSES, most_passes=MOST_PASSES, once=once,
                left_out=tuple(left_out))  # fmt: skip


def _steps(
    subject: Subject, shares: Sequence[int], *, quick: bool, most_batch: int | None,
    left_out: list[str],
) -> list[Point]:  # fmt: skip
    found: list[Point] = []
    for share in shares:
        found += [Point(kind=Kind.DECODE, model=subject.name, percent=share, batch=batch,
                        tokens=tokens)
                  for batch, tokens in _decodes(subject, quick, most_batch)]  # fmt: skip
        found += [Point(kind=Kind.PREFILL, model=subject.name, percent=share, batch=batch,
                        tokens=tokens)
                  for batch, tokens in _prefills(subject, quick)]  # fmt: skip
    found += [Point(kind=kind, model=subject.name, percent=shares[0], tokens=PAIR_CONTEXT)
              for kind in (Kind.GRANT, Kind.HANDOFF, Kind.MEMORY)]  # fmt: skip
    if quick:
        left_out.append(
            f"{subject.name}: decode batches above {QUICK_BATCHES[-1]}, contexts other "
            f"than {QUICK_CONTEXTS}, prompts other than {QUICK_PROMPTS} (--quick)"
        )
    elif (largest := max(p.batch for p in found)) < BATCHES[-1] and most_batch is None:
        left_out.append(f"{subject.name}: decode batches above {largest}: the KV memory given "
                        f"holds {subject.kv_tokens} tokens (--memory)")  # fmt: skip
    return found


def _decodes(
    subject: Subject, quick: bool, most_batch: int | None
) -> Iterator[tuple[int, int]]:  # fmt: skip
    longest = subject.max_model_len - ROOM_TO_GROW
    wanted = QUICK_CONTEXTS if quick else CONTEXTS
    contexts = [c for c in wanted if c < longest]
    if not quick or not contexts:
        contexts.append(longest)
    batches = [b for b in (QUICK_BATCHES if quick else BATCHES) if b <= (most_batch or b)]
    if most_batch is not None and most_batch not in batches:
        batches.append(most_batch)
    for batch in batches:
        for context in contexts:
            if batch * (context + ROOM_TO_GROW) <= subject.kv_tokens:
                yield batch, context


ROOM_TO_GROW: Final = 40
"""Tokens by which a sequence grows while its steps are timed, at most."""


def _prefills(subject: Subject, quick: bool) -> Iterator[tuple[int, int]]:
    longest = subject.max_model_len - 1
    lengths = [n for n in (QUICK_PROMPTS if quick else PROMPTS) if n < longest]
    if not quick:
        lengths.append(longest)
    for batch in PROMPT_BATCHES:
        for tokens in lengths:
            fits = batch * tokens <= subject.kv_tokens
            if fits and (batch == 1 or batch * tokens <= STEP_TOKENS):
                yield batch, tokens


def _pairs(subjects: Sequence[Subject], share: int) -> Iterator[Point]:
    """Every two models, or one with itself: decodes, prefills, and one of each."""
    couples = [(a, b) for i, a in enumerate(subjects) for b in subjects[i + 1 :]]
    for a, b in couples or [(subjects[0], subjects[0])]:
        decode_a, prefill_a = _sides(a, share)
        decode_b, prefill_b = _sides(b, share)
        mixed = (
            [(prefill_a, decode_b)] if a is b else [(prefill_a, decode_b), (prefill_b, decode_a)]
        )
        for pair in ((decode_a, decode_b), *mixed, (prefill_a, prefill_b)):
            yield Point(kind=Kind.PAIR, percent=share, pair=pair)


def _sides(subject: Subject, share: int) -> tuple[PairStep, PairStep]:
    context = min(PAIR_CONTEXT, subject.max_model_len - ROOM_TO_GROW)
    prompt = min(PAIR_PROMPT, subject.max_model_len - 1)
    return (PairStep(model=subject.name, phase=Phase.DECODE, percent=share, batch=PAIR_BATCH,
                     tokens=context),
            PairStep(model=subject.name, phase=Phase.PREFILL, percent=share, batch=1,
                     tokens=prompt))  # fmt: skip
