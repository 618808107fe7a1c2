"""How a unit ends that cannot start: exit code 2 and one message for what must change first."""

from pathlib import Path

import pytest

from mux_core.unitspec import UnitSpec
from unit_tree_builders import UnitTree, member, unit_spec

MISSING = Path("/nonexistent")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(unit_spec([member("a", MISSING, tensor=2)]),
                     "model a: tensor 2; this runtime runs a model on 1 GPU", id="tensor"),
        pytest.param(unit_spec([member("a", MISSING, engine="Vllm")]), "engine 'Vllm'",
                     id="engine"),
        pytest.param(unit_spec([member("a", MISSING, kv_guaranteed_bytes=65 << 20)]),
                     "the unit has 64.0 MiB", id="floors"),
    ],
)  # fmt: skip
def test_a_spec_this_runtime_cannot_serve(tmp_path: Path, spec: UnitSpec, message: str) -> None:
    unit = UnitTree(tmp_path, spec)
    unit.start()
    assert unit.process is not None
    assert unit.process.wait(timeout=60) == 2
    assert message in unit.logs()
    assert list(unit.run_dir.glob("*.sock")) == []


@pytest.mark.parametrize("text", ["", "{}", '{"version": 99}'])
def test_a_file_that_is_no_spec(tmp_path: Path, text: str) -> None:
    unit = UnitTree(tmp_path, unit_spec([]))
    unit.start_from(text)
    assert unit.process is not None
    assert unit.process.wait(timeout=60) == 2
    assert "unit spec" in unit.logs()


def test_a_taken_port_ends_the_unit_after_its_tries(tmp_path: Path) -> None:
    first, second = (UnitTree(tmp_path / n, unit_spec([])) for n in ("one", "two"))
    try:
        for unit in (first, second):
            unit.folder.mkdir()
        first.start()
        first.wait_for_port(first.ports[0])
        second.ports = first.ports
        second.start()
        assert second.process is not None
        assert second.process.wait(timeout=100) == 1
        assert "cannot listen" in second.logs()
        assert first.stop() == (0, [])
    finally:
        first.kill()
        second.kill()
