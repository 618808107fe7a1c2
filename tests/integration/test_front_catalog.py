"""Which models can be asked, and what becomes of a tokenizer that does not load."""

import logging
from pathlib import Path

import pytest

from front_builders import ScriptedGenerator, served, write_tokenizer
from mux_runtime.front.catalog import RETRY_S, Catalog
from mux_runtime.openai.errors import ApiError


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def asked(catalog: Catalog) -> list[str]:
    return [model.served.served_name for model in catalog.ready()]


async def test_a_model_is_asked_only_with_its_tokenizer(tmp_path: Path) -> None:
    generator = ScriptedGenerator([served("alpha", write_tokenizer(tmp_path))])
    catalog = Catalog(generator)
    assert asked(catalog) == []
    with pytest.raises(ApiError, match="cannot serve now") as caught:
        catalog.find("alpha")
    assert caught.value.status == 503
    await catalog.refresh(())
    assert asked(catalog) == ["alpha"]
    generator.served.clear()
    assert asked(catalog) == [], "the generator has the last word"


async def test_a_missing_tokenizer_is_said_once_and_looked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    catalog = Catalog(ScriptedGenerator([served("bare", tmp_path)]), clock=clock)
    with caplog.at_level(logging.ERROR):
        for clock.now in (0.0, 1.0, RETRY_S + 1.0):
            await catalog.refresh(())
    assert len(caplog.records) == 1
    write_tokenizer(tmp_path)
    await catalog.refresh(())
    assert "no usable tokenizer" in catalog.failures()["bare-llm"], "not every second"
    clock.now += RETRY_S
    await catalog.refresh(())
    assert catalog.failures() == {}
    assert asked(catalog) == ["bare"]


async def test_models_of_one_folder_share_a_tokenizer(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    catalog = Catalog(ScriptedGenerator([served("a", folder), served("b", folder)]))
    await catalog.refresh(())
    first, second = catalog.ready()
    assert first.tokenizer is second.tokenizer


async def test_only_models_that_are_no_member_any_more_are_forgotten(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    generator = ScriptedGenerator([served("a", folder), served("b", folder)])
    catalog = Catalog(generator)
    await catalog.refresh(())
    generator.served.clear()
    gone = await catalog.refresh(("b-llm",))
    assert [model.served_name for model in gone] == ["a"]
    assert catalog.known("a") is None
    assert catalog.known("b") is not None
