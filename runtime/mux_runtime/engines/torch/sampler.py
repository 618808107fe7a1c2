"""From scores to tokens. A draw depends on (seed, output index) and the scores alone.

Order as in vLLM: penalties, forbidden ends, temperature, min_p, top_k, top_p; log probabilities
are of the scores as the model gave them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from mux_core.engine import Sampling, TokenLogprob

GREEDY_BELOW: Final = 1e-5
"""Temperatures that would only overflow."""
_LIKELY: Final = 512
"""Tokens that nearly always hold the mass a top_p asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What one draw depends on besides the scores. `ends` may not be drawn yet."""

    sampling: Sampling
    prompt: Sequence[int]
    output: Sequence[int]
    ends: Sequence[int] = ()

    @property
    def plain(self) -> bool:
        """The most likely token, whatever was said before."""
        s = self.sampling
        penalised = s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0
        return s.temperature < GREEDY_BELOW and not penalised and not self.ends


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token for each row of `logits` `[draw, vocab]`.

    Only the likeliest is found on a GPU: draws are made on the CPU, the same on every device.
    """
    likeliest = logits.argmax(dim=1).tolist()
    if not all(draw.plain for draw in draws):
        logits = logits.cpu()
    return [
        token if draw.plain else _sample_one(scores, draw)
        for token, scores, draw in zip(likeliest, logits, draws, strict=True)
    ]


def logprobs(logits: torch.Tensor, token: int, alternatives: int) -> TokenLogprob:
    """Log probability of `token` and of the most likely ones."""
    scores = logits.log_softmax(dim=0)
    values, tokens = scores.topk(alternatives)
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token=token, logprob=float(scores[token]), top=top)


def uniform(seed: int, index: int) -> float:
    """A number of [0, 1) for the draw `index` of `seed`, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def _sample_one(logits: torch.Tensor, draw: Draw) -> int:
    s = draw.sampling
    scores = _penalised(logits, draw)
    if draw.ends:
        scores[list(draw.ends)] = -torch.inf
    if s.temperature < GREEDY_BELOW:
        return int(scores.argmax())
    # Double, so that the sum of many small probabilities does not depend on their order.
    probabilities = (scores.double() / s.temperature).softmax(dim=0)
    kept, tokens = _drawable(probabilities, s)
    cumulative = kept.cumsum(dim=0)
    point = uniform(s.seed, len(draw.output)) * float(cumulative[-1])
    index = min(int(torch.searchsorted(cumulative, point, right=True)), len(kept) - 1)
    return index if tokens is None else int(tokens[index])


def _penalised(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    s = draw.sampling
    scores = logits.clone()
    if s.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*draw.prompt, *draw.output}), dtype=torch.int64)
        old = scores[seen]
        scores[seen] = torch.where(old > 0, old / s.repetition_penalty, old * s.repetition_penalty)
    if (s.presence_penalty or s.frequency_penalty) and draw.output:
        output = torch.tensor(draw.output, dtype=torch.int64)
        counts = torch.bincount(output, minlength=len(scores)).to(scores.dtype)
        scores -= s.frequency_penalty * counts + s.presence_penalty * (counts > 0)
    return scores


def _drawable(probabilities: torch.Tensor, s: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Probabilities that may be drawn, most likely first, and their tokens; None: all, by id.

    A whole vocabulary is sorted only when its likeliest part does not decide.
    """
    if s.top_k <= 0 and s.top_p >= 1.0 and s.min_p <= 0.0:
        return probabilities, None
    everything = len(probabilities)
    likely = min(s.top_k if s.top_k > 0 else _LIKELY, everything)
    ordered, tokens = probabilities.topk(likely)
    kept = _kept(ordered, probabilities, s)
    if s.top_k <= 0 and likely < everything and float(kept[-1]) > 0.0:
        ordered, tokens = probabilities.sort(descending=True, stable=True)
        kept = _kept(ordered, probabilities, s)
    return kept, tokens


def _kept(ordered: torch.Tensor, probabilities: torch.Tensor, s: Sampling) -> torch.Tensor:
    """`ordered`, the likeliest, with those that min_p or top_p leave out at zero."""
    least = s.min_p * ordered[0]
    kept = torch.where(ordered >= least, ordered, 0.0)
    if s.top_p >= 1.0:
        return kept
    left = kept if s.top_k > 0 else probabilities[probabilities >= least]
    before = kept.cumsum(dim=0) - kept
    return torch.where(before < s.top_p * float(left.sum()), kept, 0.0)
