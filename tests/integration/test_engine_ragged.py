"""Decodes of unlike lengths: attended to in groups, with the same tokens however grouped."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_builders import KnownModel, World, greedy, torch_host, write_known_models
from mux_runtime.engines.torch import attention
from mux_runtime.engines.torch.attention import groups

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KnownModel]:
    return write_known_models(Path(tmp_path_factory.mktemp("models")))


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(0, 2000))
def test_groups_cover_all_in_order_and_none_is_padded_more_than_allowed(
    lengths: list[int], most: int
) -> None:
    lengths.sort()
    found = list(groups(lengths, most))
    assert [at for first, end in found for at in range(first, end)] == list(range(len(lengths)))
    padding = [sum(lengths[end - 1] - n for n in lengths[first:end]) for first, end in found]
    assert all(each <= most for each in padding)
    # One more would have been too much: no group ends early.
    for (first, end), _ in pairwise(found):
        assert sum(lengths[end] - n for n in lengths[first : end + 1]) > most


@pytest.mark.parametrize("padding", [0, 4 << 10, 1 << 30], ids=["apart", "some", "together"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_tokens_are_the_same_however_decodes_are_grouped(
    models: dict[str, KnownModel], name: str, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_ascending(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
        assert list(lengths) == sorted(lengths)
        return list(groups(lengths, most))

    monkeypatch.setattr(attention, "PADDING", padding)
    monkeypatch.setattr(attention, "groups", of_ascending)
    world = World()
    driver = world.drive(torch_host(models[name], world), name)
    asked = {str(n): models[name].sure_prompt(n, 12) for n in (40, 3, 17, 4, 29)}
    for rid, (prompt, _) in asked.items():
        driver.add(rid, prompt, greedy(12))
    driver.run(budget=128)
    assert {rid: driver.output(rid) for rid in asked} == {r: t for r, (_, t) in asked.items()}
