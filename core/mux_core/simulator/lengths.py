"""Token lengths of requests: a joint distribution with the means that an LLM states, or fixed.

The ShareGPT-like shape: prompt and output are log-normal and independent, cut to prompts of 4 to
1024 tokens and at most 2048 tokens together, which is how MuxServe (arXiv 2404.02015) and vLLM's
benchmarks cut the ShareGPT conversations (means 161 and 338: vLLM, arXiv 2309.06180, figure 11).
The two spreads are assumptions of ours; the conversations themselves are not shipped.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import log
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mux_core.errors import SpecError

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]

LEAST_PROMPT: Final = 4
MOST_PROMPT: Final = 1024
MOST_TOTAL: Final = 2048
PROMPT_SPREAD: Final = 1.3
"""Standard deviation of the logarithm of a prompt's tokens, before the cut; assumed."""
OUTPUT_SPREAD: Final = 0.9
_HALVINGS: Final = 60
_ROUNDS: Final = 12
_REACHED: Final = 0.02


class LengthShape(StrEnum):
    """How the lengths of an LLM's requests vary around their means."""

    SHAREGPT = "sharegpt"
    FIXED = "fixed"


class Lengths(Protocol):
    """Where token lengths come from; a value, it draws from what it is given."""

    def draw(self, uniform: Floats) -> tuple[Tokens, Tokens]:
        """(prompts, outputs) of as many requests as `uniform` has rows; two columns in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLengths:
    """Every request alike."""

    prompt: int
    output: int

    def draw(self, uniform: Floats) -> tuple[Tokens, Tokens]:
        count = len(uniform)
        return np.full(count, self.prompt, np.int64), np.full(count, self.output, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class JointLengths:
    """A prompt by its marginal distribution, then an output that leaves the total in its bound.

    `prompt_below[i]`: share of prompts of at most `prompts[i]` tokens. `output_below[k]`: share of
    outputs of at most k tokens, before the bound on the total.
    """

    prompts: Tokens
    prompt_below: Floats
    output_below: Floats
    total: int

    def draw(self, uniform: Floats) -> tuple[Tokens, Tokens]:
        index = np.searchsorted(self.prompt_below, uniform[:, 0], side="right")
        prompts = self.prompts[np.minimum(index, len(self.prompts) - 1)]
        inside = uniform[:, 1] * self.output_below[self.total - prompts]
        outputs = np.searchsorted(self.output_below, inside, side="right")
        return prompts, np.clip(outputs, 1, self.total - prompts)


def lengths_of(
    shape: LengthShape, *, prompt: float, output: float, longest: int, subject: str
) -> Lengths:
    """Lengths with these means; `longest`: tokens the LLM takes. Raises SpecError if it cannot."""
    if prompt + output > longest:
        raise SpecError(f"{subject}: prompts of {prompt:g} and outputs of {output:g} tokens on "
                        f"average, the model takes {longest} together; lower them")  # fmt: skip
    if shape is LengthShape.FIXED:
        return FixedLengths(max(1, round(prompt)), max(1, round(output)))
    total = min(MOST_TOTAL, longest)
    fitted = _fitted(prompt, output, total)
    if fitted is None:
        raise SpecError(f"{subject}: no ShareGPT-like lengths have means of {prompt:g} and "
                        f"{output:g} tokens; prompts are {LEAST_PROMPT} to {MOST_PROMPT} tokens, "
                        f"{total} with the output; take fixed lengths")  # fmt: skip
    return fitted


@lru_cache(maxsize=256)
def _fitted(prompt: float, output: float, total: int) -> JointLengths | None:
    """The cut log-normals whose means are the ones asked for, found by halving in turn."""
    at = [log(prompt), log(output)]
    for _ in range(_ROUNDS):
        for side, wanted in enumerate((prompt, output)):
            low, high = log(0.01), log(1e6)
            for _ in range(_HALVINGS):
                at[side] = (low + high) / 2
                short = _means(at[0], at[1], total)[side] < wanted
                low, high = (at[side], high) if short else (low, at[side])
    found = _means(at[0], at[1], total)
    if max(abs(found[0] / prompt - 1), abs(found[1] / output - 1)) > _REACHED:
        return None
    prompts, weights, output_below, _ = _tables(at[0], at[1], total)
    below = np.cumsum(weights)
    return JointLengths(prompts, below / below[-1], output_below, total)


def _means(prompt_at: float, output_at: float, total: int) -> tuple[float, float]:
    prompts, weights, output_below, output_sum = _tables(prompt_at, output_at, total)
    whole = weights.sum()
    room = total - prompts
    outputs = weights / output_below[room] * output_sum[room]
    return float(weights @ prompts / whole), float(outputs.sum() / whole)


def _tables(
    prompt_at: float, output_at: float, total: int
) -> tuple[Tokens, Floats, Floats, Floats]:
    """(prompts, their weights under the cut, outputs below, tokens of outputs below)."""
    prompts = np.arange(LEAST_PROMPT, min(MOST_PROMPT, total - 1) + 1)
    outputs = np.arange(1, total)
    density = _log_normal(outputs, output_at, OUTPUT_SPREAD)
    below = np.concatenate(([0.0], np.cumsum(density)))
    tokens = np.concatenate(([0.0], np.cumsum(density * outputs)))
    weights = _log_normal(prompts, prompt_at, PROMPT_SPREAD) * below[total - prompts]
    return prompts, weights, below, tokens


def _log_normal(values: Tokens, at: float, spread: float) -> Floats:
    """Weights of whole numbers; scaled so that the largest is 1, which keeps far tails finite."""
    logs = np.log(values.astype(np.float64))
    exponent = -((logs - at) ** 2) / (2 * spread**2) - logs
    found: Floats = np.exp(exponent - exponent.max())
    return found
