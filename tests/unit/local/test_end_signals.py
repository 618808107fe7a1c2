"""A signal before or after the event loop: the server ends with 0 and leaves no lock."""

import subprocess
import sys
from pathlib import Path

import pytest

SERVER = """
import os, signal, sys
from pathlib import Path
from mux_operator.local import serve
from mux_operator.local.datadir import DataDir

step = getattr(DataDir, sys.argv[1])

def signalled(self):
    if sys.argv[1] == "release":
        os.kill(os.getpid(), signal.SIGTERM)
    result = step(self)
    os.kill(os.getpid(), signal.SIGTERM)
    return result

setattr(DataDir, sys.argv[1], signalled)
if sys.argv[1] == "release":
    async def run(self):
        return 0
    serve.Server.run = run
options = serve.Options(paths=(Path(sys.argv[2]),), port=0, data_dir=Path(sys.argv[3]))
sys.exit(serve.serve(options))
"""
MANIFEST = """apiVersion: muxserve.io/v1alpha1
kind: LLMDeployment
metadata: {name: one}
spec: {model: {uri: "file:///models/x"}}
"""


@pytest.mark.parametrize("step", ["claim", "release"])
def test_a_signal_outside_the_loop_leaves_no_lock(tmp_path: Path, step: str) -> None:
    manifest, data = tmp_path / "one.yaml", tmp_path / "data"
    manifest.write_text(MANIFEST)
    command = [sys.executable, "-c", SERVER, step, str(manifest), str(data)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert [p.name for p in data.iterdir()] == ["logs"]
