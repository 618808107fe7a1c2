"""Every command block of the README runs as it stands there.

A block carries what it is in a comment above it: `shell` runs by itself, `server` runs until
stopped with the `client` block against it, `cluster` runs on the test cluster
(`test_readme_cluster.py`), `gate` is what CI calls.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from readme_blocks import ROOT, blocks

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout after `make setup`, with state of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").symlink_to(sys.prefix)
    # The demo as make runs it, without installing everything once more.
    makefile = (ROOT / "Makefile").read_text()
    (folder / "Makefile").write_text(
        re.sub(r"^(demo|setup):.*?( ##|$)", r"\1:\2", makefile, flags=re.M)
    )
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    return folder


def run(block: str, folder: Path) -> str:
    env = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_says_what_it_is() -> None:
    found = [kind for kind, _ in blocks()]
    assert sorted(set(found)) == ["client", "cluster", "gate", "server", "shell"]
    fenced = re.findall(r"^```sh$", (ROOT / "README.md").read_text(), re.M)
    assert len(fenced) == len(found)


def test_the_gate_runs_the_test_command_of_the_readme() -> None:
    ((_, command),) = [block for block in blocks() if block[0] == "gate"]
    assert f"exec {command.strip()}\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("block", [text for kind, text in blocks() if kind == "shell"])
def test_a_shell_block_runs(block: str, checkout: Path) -> None:
    assert run(block, checkout)


def test_the_server_block_serves_the_client_block(checkout: Path) -> None:
    if not (checkout / ".demo" / "manifests").exists():
        run("make demo ARGS=--exit", checkout)
    ((_, server),) = [block for block in blocks() if block[0] == "server"]
    ((_, client),) = [block for block in blocks() if block[0] == "client"]
    env = {**os.environ, "XDG_STATE_HOME": str(checkout / "state")}
    running = subprocess.Popen(
        ["bash", "-c", f"exec {server.strip()}"],
        cwd=checkout, env=env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready http://127.0.0.1:8000\n"
        said = run(client, checkout)
        assert "tiny-qwen3" in said
        assert "data: [DONE]" in said
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 0
