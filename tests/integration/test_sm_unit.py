"""A whole unit that believes it has a GPU: driver, NVML and MPS daemon are stand-ins.

What ships is all real: supervisor, brain and engine hosts. It goes as far as a unit can go on a GPU
today: the shares are set up, and the hosts say why they cannot serve.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mux_cli.tiny_models import DEMO, write
from mux_core.unitspec import Device
from mux_runtime.sm.mps import MpsControl
from mux_runtime.supervisor.main import UnitPaths
from sm_builders import FAKES, gpu, install_fakes
from unit_tree_builders import UnitTree, member, unit_spec

pytestmark = pytest.mark.engine
VARIABLES = ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_VISIBLE_DEVICES",
             "CUDA_MPS_PIPE_DIRECTORY")  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in install_fakes(tmp_path / "fakes").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "fakes" / "pynvml.py").write_text((FAKES / "pynvml.py").read_text())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))
    return monkeypatch


@pytest.fixture
def tree(tmp_path: Path, environment: pytest.MonkeyPatch) -> Iterator[UnitTree]:
    model = write(DEMO["tiny-llama"], tmp_path / "model")
    unit = UnitTree(tmp_path, unit_spec([member("a", model)], device=Device.CUDA))
    yield unit
    unit.kill()
    UnitPaths(run_dir=unit.run_dir).mps.prepare()


async def test_hosts_get_their_share_s_environment_and_say_why_they_cannot_serve(
    tree: UnitTree,
) -> None:
    tree.start()
    control = MpsControl(paths=UnitPaths(run_dir=tree.run_dir).mps)
    seen: dict[str, tuple[str, ...]] = {}
    async with tree.client() as client:
        status = await client.until(lambda s: _look(tree, seen) and any(
            m.state == "Failed" for m in s.members))  # fmt: skip
    (failed,) = status.members
    assert (failed.reason, failed.permanent) == ("UnsupportedVersion", True)
    assert "cannot share a KV pool in GPU memory" in failed.message
    asked = {phase: (percent, gpu().uuid, str(control.paths.pipe))
             for phase, percent in (("prefill", "60"), ("decode", "30"))}  # fmt: skip
    assert seen, "no host was met while it started"
    assert seen == {phase: asked[phase] for phase in seen}
    assert tree.stop() == (0, [])
    assert not (control.paths.pipe / "control").exists()


def _look(tree: UnitTree, seen: dict[str, tuple[str, ...]]) -> bool:
    """Notes by phase what engine hosts that run now were started with."""
    for process in tree.processes():
        try:
            line, environment = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        if "mux_runtime.engines.torch" in line:
            seen[line[line.index("--phase") + 1]] = tuple(environment[name] for name in VARIABLES)
    return True


@pytest.mark.parametrize(
    ("name", "value", "code", "words"),
    [
        ("FAKE_MIG", "1", 2, "MIGEnabled: GPU 0 (Fake GPU, "),
        ("FAKE_GPU_USER", "4711", 1, "the largest is 4711 with 3.0 GiB"),
        ("PATH", "/nowhere", 2, "MPSUnavailable: MPS: nvidia-cuda-mps-control is not on the PATH"),
        ("FAKE_MPS", "refusing", 1, "the daemon ended at once"),
    ],
)
def test_a_machine_that_is_not_fit_ends_the_unit_with_the_reason(
    tree: UnitTree, environment: pytest.MonkeyPatch, name: str, value: str, code: int, words: str
) -> None:
    environment.setenv(name, value)
    tree.start()
    assert tree.process is not None
    assert tree.process.wait(60) == code
    assert words in (tree.folder / "supervisor.log").read_text()
