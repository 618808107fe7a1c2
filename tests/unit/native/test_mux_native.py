"""The built module: what it promises beyond the allocators' common suite."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mux_core.engine import kv_geometry
from mux_runtime.kvpool.allocator import open_allocator

ROOT = Path(__file__).parents[3]
KV_ARENA_UNITS = (64 << 30) // 16384


@pytest.mark.skipif(
    shutil.which("c++") is None, reason="no C++ compiler: the reference allocator is used"
)
def test_where_there_is_a_compiler_the_native_allocator_is_used() -> None:
    assert open_allocator(128).kind == "native", "make setup did not build ./csrc"


def test_without_the_module_the_reference_is_used_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mux_native", None)
    monkeypatch.delitem(sys.modules, "mux_runtime.kvpool.native", raising=False)
    assert open_allocator(128).kind == "reference"


def test_importing_it_imports_no_framework() -> None:
    pytest.importorskip("mux_native")
    script = "import sys, mux_native; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {"torch", "numpy"}.isdisjoint(modules)


def test_the_committed_stub_is_that_of_the_module() -> None:
    native = pytest.importorskip("mux_native")
    stubgen = pytest.importorskip("nanobind.stubgen")
    generated = stubgen.StubGen(module=native._core)
    generated.put(native._core)
    committed = (ROOT / "csrc/python/mux_native/_core.pyi").read_text()
    assert ast.dump(ast.parse(committed)) == ast.dump(ast.parse(generated.get()))


@pytest.mark.parametrize(
    ("kv_heads", "run", "head", "starts", "k_offset", "v_unit"),
    [
        pytest.param(8, 1008, 3, 4_194_289, 8_308_864, 1015, id="8B grouped heads"),
        pytest.param(32, 2048, 31, 4_194_241, 17_287_296, 2111, id="7B a head each"),
    ],
)
def test_runs_lie_where_the_design_says(
    kv_heads: int, run: int, head: int, starts: int, k_offset: int, v_unit: int
) -> None:
    native = pytest.importorskip("mux_native")
    shape = kv_geometry(
        layers=32, kv_heads=kv_heads, head_dim=128, dtype="bfloat16", unit_bytes=16384
    )
    unit = shape.unit_bytes // shape.itemsize
    view = native.RunGeometry(kv_heads=kv_heads, head_dim=128, unit_elements=unit)
    assert view.run_units == shape.run_units
    assert view.starts(KV_ARENA_UNITS) == starts
    assert view.strides() == (8192, 16384, 128, 1)
    assert view.k_offset(run, head, 17) == k_offset
    assert view.v_offset(run, head, 17) // unit == v_unit


def test_a_shape_without_runs_is_refused() -> None:
    native = pytest.importorskip("mux_native")
    pool = native.BlockAllocator(128)
    with pytest.raises(ValueError, match="start at 1"):
        pool.can_lease(1, 0, 2, 1)
    with pytest.raises(native.InvariantBroken, match="no unit index"):
        pool.free([(-1,)], 1, 2)
