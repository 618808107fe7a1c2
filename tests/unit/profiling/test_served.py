"""Which models a profile's unit serves, and what its steps say beside those on the bench."""

from pathlib import Path
from typing import Any

import pytest

from mux_cli import profile_unit
from mux_cli.profile_subjects import Subject
from mux_core.costmodel.profile_set import Served, UnitCost, Work
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
    """Of a model whose long steps take 4 ms each on the bench, short ones 2; in a unit, which
    served `name`, half as long again and 1 ms more, prefills 2 ms more. It also made steps of more
    sequences than the bench."""
    points = [Point(kind=Kind.DECODE, model="m", percent=percent, batch=batch, tokens=tokens)
              for percent in (50, 100) for batch in (1, 8) for tokens in (64, 512)]  # fmt: skip
    points += [Point(kind=Kind.PREFILL, model="m", percent=percent, tokens=tokens)
               for percent in (50, 100) for tokens in (1, 64)]  # fmt: skip
    unit = Point(kind=Kind.UNIT, percent=50)
    found: dict[str, Any] = {
        point.key: {"s": 0.004 if point.batch == 8 or (point.kind is Kind.PREFILL and
                    point.tokens == 64) else 0.002}
        for point in points
    }  # fmt: skip
    found[unit.key] = {
        "cost": {**WORK, "scheduler": WORK, "client": WORK, "cores_used": 0.9},
        "steps": {name: {"batches": [1.0, 8.0, 16.0], "decode_s": [0.004, 0.007, 9.0],
                         "prompts": [1, 64], "prefill_s": [0.004, 0.006]}},
        "yardstick_s": 0.002,
    }  # fmt: skip
    return assemble(found, [*points, unit], gpu="cpu", made=MADE, geometries={"m": shape()},
                    left_out=())  # fmt: skip


def test_a_models_steps_in_the_unit_are_compared_with_those_on_the_bench():
    assert profiled(name="m").made.yardstick_s == 0.002
    work = Work(**WORK)
    assert profiled(name="m").unit == UnitCost(**WORK, scheduler=work, client=work, cores_used=0.9)
    (model,) = profiled(name="m").models
    assert model.served is not None
    for bench_s, prefill_s in ((0.002, 0.004), (0.004, 0.006)):
        assert model.served.prefill.of(bench_s) == pytest.approx(prefill_s)
    assert dict(model.served.decode) == pytest.approx({1.0: 2.0, 8.0: 1.75})
    assert not model.served.together


@pytest.mark.parametrize(
    ("batch", "times"), [(1, 2.0), (2, 2.0), (4, 1.5), (8, 1.0), (16, 1.2), (32, 1.4), (99, 1.4)]
)
def test_decodes_between_known_batches_take_what_lies_between(batch, times):
    served = Served(decode=((2.0, 2.0), (8.0, 1.0), (32.0, 1.4)))
    assert served.decode_times(batch) == pytest.approx(times)


def test_a_unit_that_served_another_says_nothing_of_a_models_steps():
    (model,) = profiled(name="").models
    assert model.served is None
