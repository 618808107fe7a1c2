"""Which models a profile's unit serves, and what its steps say beside those on the bench."""

from pathlib import Path

import pytest

from mux_cli import profile_unit
from mux_cli.profile_subjects import Subject
from mux_core.costmodel.profile_set import UnitCost, Work
from mux_core.llm import ModelGeometry
from mux_runtime.profiling.assemble import assemble
from mux_runtime.profiling.points import Kind, Point
from profile_builders import MADE, shape

SMALL = Path("made/small")
WORK = {"step_s": 1e-3, "token_s": 1e-4, "request_s": 2e-3}


def subject(name: str, geometry: ModelGeometry, *, is_config: bool = False) -> Subject:
    return Subject(name=name, source=Path("/models") / name, is_config=is_config,
                   geometry=geometry)  # fmt: skip


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(profile_unit, "_write_small", lambda folder: folder / SMALL)
    return lambda *subjects: profile_unit.models_to_serve(subjects, tmp_path)


def test_the_smallest_models_are_served_under_their_names(chosen):
    subjects = [subject(f"m{layers}", shape(layers=layers)) for layers in (8, 2, 6, 4)]
    found = chosen(*subjects)
    assert list(found.models) == ["m2", "m4", "m6"]
    weights = sum(shape(layers=layers).weight_bytes for layers in (2, 4, 6))
    assert found.memory >= weights + 3 * profile_unit.LEAST_BYTES


def test_what_no_client_can_ask_or_memory_cannot_hold_is_not_served(chosen, tmp_path):
    short, bare = shape(max_model_len=100), shape()
    huge = shape(layers=4000, hidden=8192)
    found = chosen(subject("short", short), subject("bare", bare, is_config=True),
                   subject("huge", huge))  # fmt: skip
    assert found.models == {"": tmp_path / SMALL}
    found = chosen(subject("fits", shape()), subject("huge", huge))
    assert list(found.models) == ["fits"]
    assert found.memory < huge.weight_bytes


def profiled(*, name: str):
    """Of a model whose steps take 2 ms each on the bench, the unit having served `name`."""
    points = [Point(kind=Kind.DECODE, model="m", percent=percent, batch=batch, tokens=tokens)
              for percent in (50, 100) for batch in (1, 8) for tokens in (64, 512)]  # fmt: skip
    points += [Point(kind=Kind.PREFILL, model="m", percent=percent, tokens=tokens)
               for percent in (50, 100) for tokens in (1, 64)]  # fmt: skip
    unit = Point(kind=Kind.UNIT, percent=50)
    found = {point.key: {"s": 0.002} for point in points}
    found[unit.key] = {
        "cost": {**WORK, "scheduler": WORK, "client": WORK},
        "steps": {name: {"batches": [1.0, 7.5], "decode_s": [0.003, 0.005], "prefill_s": 0.003}},
    }  # fmt: skip
    return assemble(found, [*points, unit], gpu="cpu", made=MADE, geometries={"m": shape()},
                    left_out=())  # fmt: skip


def test_a_models_steps_in_the_unit_are_compared_with_those_on_the_bench():
    assert profiled(name="m").unit == UnitCost(**WORK, scheduler=Work(**WORK), client=Work(**WORK))
    (model,) = profiled(name="m").models
    assert model.served is not None
    assert model.served.decode == pytest.approx(0.008 / 0.004)
    assert model.served.prefill == pytest.approx(1.5)


def test_a_unit_that_served_another_says_nothing_of_a_models_steps():
    (model,) = profiled(name="").models
    assert model.served is None
