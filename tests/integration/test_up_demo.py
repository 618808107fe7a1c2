"""`make demo ARGS=--exit` as a person runs it, and `muxserve status` beside a running server."""

import subprocess
import sys
from pathlib import Path

import pytest

from mux_cli.tiny_models import DEMO
from up_server import shared_memory

pytestmark = pytest.mark.engine


def test_the_demo_serves_three_models_and_ends_by_itself(tmp_path: Path) -> None:
    before = shared_memory()
    ran = subprocess.run(
        [sys.executable, "-m", "mux_cli.demo", "--exit", "--port", "0",
         "--folder", str(tmp_path / "demo")],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for words in ("ready http://127.0.0.1:", "What happened", "KV peak", *DEMO):
        assert words in ran.stdout, ran.stdout
    assert "serving as 'tiny-qwen3'" in ran.stdout
    assert [p.name for p in (tmp_path / "demo" / "state").iterdir()] == ["logs"]
    assert shared_memory() <= before
