"""`muxserve up` as a process: exit codes, what it prints, and what it never leaves behind."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from load import Ask, run_load
from mux_cli.demo_files import llm_manifest, write_manifests
from mux_cli.tiny_models import TinyModel, write
from up_server import UpServer, muxserve_up, shared_memory, up_on, wait_until

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return write(TinyModel(family="llama", layers=1, hidden=64, heads=2, kv_heads=1, head_dim=32,
                           intermediate=64), folder)  # fmt: skip


def run_up(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mux_cli.main", "up", *arguments],
                          capture_output=True, text=True, timeout=120)  # fmt: skip


def status(up: UpServer) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mux_cli.main", "status", "--data-dir",
                           str(up.data)], capture_output=True, text=True, timeout=60)  # fmt: skip


def test_it_ends_by_sigint_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    before = shared_memory()
    with muxserve_up(tmp_path, {"one": tiny}) as up:
        assert up.served() == {"one"}
        run_dirs = [Path(p.cwd()) for p in up.tree()]
        assert run_dirs
        assert up.end(signal.SIGINT) == 0
        assert up.leftovers() == []
    assert shared_memory() <= before


def test_a_killed_server_takes_its_tree_along_and_the_next_start_is_clean(
    tiny: Path, tmp_path: Path
) -> None:
    before = shared_memory()
    with muxserve_up(tmp_path, {"one": tiny}) as up:
        assert len(up.tree()) > 4
        assert "one  one  Serving" in status(up).stdout
        up.end(signal.SIGKILL)
        assert "which was killed" in status(up).stderr
        wait_until(lambda: not [x for x in up.leftovers() if x.startswith("pid")], 20)
    with muxserve_up(tmp_path, {"one": tiny}) as again:
        assert again.served() == {"one"}
        assert again.end() == 0
        assert again.leftovers() == []
    assert shared_memory() <= before


def test_a_killed_unit_comes_back_as_the_next_incarnation(tiny: Path, tmp_path: Path) -> None:
    with muxserve_up(tmp_path, {"one": tiny}) as up:
        (unit,) = up.status()["units"]
        psutil.Process(unit["pid"]).kill()
        wait_until(lambda: [u["incarnation"] for u in up.status()["units"]] == [2])
        wait_until(lambda: up.served() == {"one"})
        assert up.end() == 0
        assert up.leftovers() == []


def test_a_killed_gateway_comes_back_on_its_port(tiny: Path, tmp_path: Path) -> None:
    with muxserve_up(tmp_path, {"one": tiny}) as up:
        (gateway,) = up.role("mux_runtime gateway")
        gateway.kill()

        def listed() -> bool:
            try:
                return up.served() == {"one"}
            except OSError:
                return False

        wait_until(listed)
        assert up.end() == 0
        assert up.leftovers() == []


async def test_running_streams_end_whole_when_it_drains(tiny: Path, tmp_path: Path) -> None:
    with muxserve_up(tmp_path, {"one": tiny}) as up:
        asks = [Ask(model="one", prompt=(7, 8, number), max_tokens=1500, ignore_eos=True)
                for number in range(9, 17)]  # fmt: skip
        load = asyncio.create_task(run_load(up.url, asks))
        await asyncio.sleep(0.7)
        assert not load.done()
        code = await asyncio.to_thread(up.end)
        fates = await load
        assert [(f.finish, f.error) for f in fates] == [("length", "")] * len(asks)
        assert code == 0
        assert up.leftovers() == []


def test_a_second_signal_ends_it_at_once(tiny: Path, tmp_path: Path) -> None:
    with muxserve_up(tmp_path, {"one": tiny}) as up:
        up.tree()
        up.process.send_signal(signal.SIGINT)
        wait_until(lambda: up.said("ending: running requests finish"))
        if up.process.poll() is None:
            up.process.send_signal(signal.SIGINT)
        assert up.process.wait(30) == 0
        assert up.leftovers() == []


def test_wrong_manifests_are_all_listed_and_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(llm_manifest("a", tmp_path) + "  colour: red\n")
    (tmp_path / "b.yaml").write_text("spec: [")
    data = tmp_path / "data"
    ended = run_up("-f", str(tmp_path), "--port", "0", "--data-dir", str(data))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert f"{tmp_path / 'a.yaml'}:12" in ended.stderr
    assert 'unknown field "spec.colour"' in ended.stderr
    assert f"{tmp_path / 'b.yaml'}:1" in ended.stderr
    assert not data.exists()


def test_a_path_that_is_not_there_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    assert "no such file" in run_up("-f", str(tmp_path / "nowhere")).stderr
    empty = run_up("-f", str(tmp_path))
    assert empty.returncode == 2
    assert "no manifest in" in empty.stderr


def test_a_port_in_use_is_refused(tiny: Path, tmp_path: Path) -> None:
    manifests = write_manifests(tmp_path / "m", {"one": tiny})
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        ended = run_up("-f", str(manifests), "--port", port, "--data-dir", str(tmp_path / "d"))
    assert ended.returncode == 2
    assert f"--port {port}: in use" in ended.stderr


def test_a_second_server_on_the_same_data_directory_is_refused(tiny: Path, tmp_path: Path) -> None:
    with muxserve_up(tmp_path, {"one": tiny}) as up:
        ended = run_up("-f", str(up.manifests), "--port", "0", "--data-dir", str(up.data))
        assert ended.returncode == 2
        assert f"pid {up.process.pid}" in ended.stderr
        assert up.served() == {"one"}


def unsupported(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["MambaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def absent(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(unsupported, "MambaForCausalLM", id="unsupported architecture"),
        pytest.param(truncated, "model.safetensors", id="truncated weights"),
        pytest.param(without_tokenizer, "tokenizer", id="missing tokenizer"),
        pytest.param(absent, "config.json", id="no config"),
    ],
)
def test_a_model_that_can_never_serve_ends_the_start_with_2(
    tiny: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in tiny.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    spoil(bad)
    with muxserve_up(tmp_path, {"bad": bad, "good": tiny}, wait=False) as up:
        assert up.process.wait(120) == 2
        assert up.url == ""
        assert up.said("bad: will not serve"), up.lines
        assert up.said(words), up.lines
        assert up.leftovers() == []


def test_with_keep_going_the_others_serve_and_the_condition_is_told(
    tiny: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    with muxserve_up(tmp_path, {"bad": gone, "good": tiny}, "--keep-going") as up:
        assert up.served() == {"good"}
        assert up.said("bad: NotFound"), up.lines
        assert up.end() == 0


def permanent(folder: Path, tiny: Path, name: str) -> str:
    """The manifest of a model that the objects around it refuse."""
    manifest = llm_manifest(name, tiny)
    return {
        "pool": manifest.replace("spec:\n", "spec:\n  poolRef: {name: elsewhere}\n"),
        "name": manifest.replace("  model:\n", "  model:\n    servedName: good\n"),
        "size": manifest + "  sharing: {kvCache: {request: 900Gi}}\n",
        "source": manifest.replace("file://", "pvc://claim"),
    }[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("pool", "PoolNotFound", id="a pool that is not there"),
        pytest.param("name", "NameConflict", id="a served name given twice"),
        pytest.param("size", "DoesNotFit", id="more KV than the slot has"),
        pytest.param("source", "UnsupportedSource", id="a source of the cluster"),
    ],
)
def test_what_other_objects_refuse_becomes_a_condition(
    tiny: Path, tmp_path: Path, name: str, reason: str
) -> None:
    manifests = write_manifests(tmp_path / "manifests", {"good": tiny})
    (manifests / "second.yaml").write_text(permanent(tmp_path, tiny, name))
    with up_on(manifests, tmp_path / "data", "--keep-going") as up:
        up.wait_ready()
        assert up.served() == {"good"}
        assert up.said(f"{name}: {reason}"), up.lines


def test_a_file_broken_while_running_changes_nothing_and_is_told(
    tiny: Path, tmp_path: Path
) -> None:
    with muxserve_up(tmp_path, {"one": tiny}) as up:
        before = {p.pid for p in up.tree()}
        file = up.manifests / "one.yaml"
        good = file.read_text()
        file.write_text(good + "  colour: red\n")
        wait_until(lambda: up.said(f"not taken: {file}:12"))
        (up.manifests / "pool.yaml").write_text("{")
        wait_until(lambda: up.said("pool.yaml:1"))
        assert up.served() == {"one"}
        file.write_text(good)
        assert before <= {p.pid for p in up.tree()}
        assert up.process.poll() is None


def test_every_file_may_go_and_come_back(tiny: Path, tmp_path: Path) -> None:
    with muxserve_up(tmp_path, {"one": tiny}) as up:
        held = {f: f.read_text() for f in up.manifests.iterdir()}
        for file in held:
            file.unlink()
        wait_until(lambda: not up.role("mux_runtime unit"))
        assert up.served() == set()
        assert up.process.poll() is None
        for file, text in held.items():
            file.write_text(text)
        wait_until(lambda: up.served() == {"one"})
        assert up.end() == 0
        assert up.leftovers() == []
