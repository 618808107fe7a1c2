"""Draws: limits, order of the filters, and that nothing but seed and index decides."""

from collections import Counter

import pytest
import torch

from mux_core.engine import Sampling
from mux_runtime.engines.torch.sampler import Draw, logprobs, sample, uniform

PROBABILITIES = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
LOGITS = PROBABILITIES.log()


def drawn(count: int = 4000, *, prompt: tuple[int, ...] = (), output: tuple[int, ...] = (),
          ends: tuple[int, ...] = (), **sampling: object) -> Counter[int]:  # fmt: skip
    """How often each token is drawn over many seeds."""
    values = {"max_tokens": 9, **sampling}
    draws = [
        Draw(sampling=Sampling(**{**values, "seed": seed}), prompt=prompt, output=output, ends=ends)  # type: ignore[arg-type]
        for seed in range(count)
    ]
    return Counter(sample(LOGITS.expand(count, -1), draws))


def test_frequencies_are_the_probabilities() -> None:
    counts = drawn()
    for token, probability in enumerate(PROBABILITIES.tolist()):
        # Five standard deviations of a binomial: the seeds are fixed, so this never flickers.
        spread = 5 * (probability * (1 - probability) / 4000) ** 0.5
        assert abs(counts[token] / 4000 - probability) < spread


def test_temperature_sharpens_and_zero_is_greedy() -> None:
    assert drawn(temperature=0.25)[0] > drawn(temperature=1.0)[0] > drawn(temperature=4.0)[0]
    assert set(drawn(10, temperature=0.0)) == {0}


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 0}, {0, 1, 2, 3, 4}),
        ({"top_k": -1}, {0, 1, 2, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.4}, {0}),
        ({"top_p": 0.41}, {0, 1}),
        ({"top_p": 0.86}, {0, 1, 2, 3}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.5}, {0, 1}),
        ({"min_p": 0.3, "top_k": 2}, {0, 1}),
    ],
)
def test_filters_keep_exactly_these(limit: dict[str, float], allowed: set[int]) -> None:
    assert set(drawn(400, **limit)) == allowed


def test_forbidden_ends_are_never_drawn() -> None:
    assert set(drawn(400, ends=(0, 4))) == {1, 2, 3}
    assert set(drawn(5, temperature=0.0, ends=(0,))) == {1}


def test_penalties() -> None:
    greedy = {"temperature": 0.0, "count": 1}
    assert set(drawn(**greedy, output=(0,), presence_penalty=0.5)) == {1}
    assert set(drawn(**greedy, output=(0,), presence_penalty=0.2)) == {0}
    assert set(drawn(**greedy, output=(0, 0, 0), frequency_penalty=0.2)) == {1}
    assert set(drawn(**greedy, prompt=(0,), presence_penalty=2.0, frequency_penalty=2.0)) == {0}
    # Scores are negative here, so the penalty multiplies; it counts the prompt as well.
    assert set(drawn(**greedy, prompt=(0,), repetition_penalty=1.5)) == {1}


def test_a_draw_depends_on_seed_and_index() -> None:
    assert uniform(1, 0) == uniform(1, 0)
    assert len({uniform(seed, index) for seed in range(20) for index in range(20)}) == 400
    assert all(0 <= uniform(seed, 3) < 1 for seed in range(200))


def test_logprobs_are_of_the_models_own_scores() -> None:
    told = logprobs(LOGITS, 2, 2)
    assert told.token == 2
    assert told.logprob == pytest.approx(float(LOGITS[2]))
    assert [token for token, _ in told.top] == [0, 1]
    assert logprobs(LOGITS, 2, 0).top == ()


LIMITS = [
    {"top_p": 0.5}, {"top_p": 0.999}, {"min_p": 0.4}, {"top_k": 600, "top_p": 0.9},
    {"min_p": 0.4, "top_p": 0.9},
]  # fmt: skip


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("steepness", [0.0005, 0.05])
def test_a_large_vocabulary_is_filtered_as_if_sorted_whole(
    limit: dict[str, float], steepness: float
) -> None:
    """The same tokens as by the definition, which sorts everything."""
    shuffled = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    scores = torch.empty(3000)
    scores[shuffled] = torch.arange(3000).float() * -steepness
    ordered, tokens = scores.double().softmax(dim=0).sort(descending=True)
    kept = torch.where(ordered >= limit.get("min_p", 0.0) * ordered[0], ordered, 0.0)
    kept[int(limit.get("top_k", 3000)) :] = 0.0
    before = kept.cumsum(0) - kept
    kept = torch.where(before < limit.get("top_p", 1.0) * float(kept.sum()), kept, 0.0)
    cumulative = kept.cumsum(0)
    points = (
        torch.tensor([uniform(seed, 0) for seed in range(300)], dtype=torch.float64)
        * cumulative[-1]
    )
    expected = tokens[torch.searchsorted(cumulative, points, right=True)].tolist()
    draws = [
        Draw(sampling=Sampling(max_tokens=1, seed=seed, **limit), prompt=(), output=())  # type: ignore[arg-type]
        for seed in range(300)
    ]
    assert sample(scores.expand(300, -1), draws) == expected
