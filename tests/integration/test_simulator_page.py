"""Every command of docs/simulator.md runs as it stands there, one block after the other."""

import subprocess
import sys

import pytest

from readme_blocks import blocks


@pytest.mark.timeout(600)
def test_the_commands_of_the_simulators_page_run_as_pasted(tmp_path):
    (tmp_path / ".venv").symlink_to(sys.prefix)
    pasted = "\n".join(text for _, text in blocks("docs/simulator.md"))
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", pasted], cwd=tmp_path, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = tmp_path / ".simulator"
    assert "Capacity report: 3 models" in (written / "report.html").read_text()
    assert len(list((written / "pictures").glob("*.png"))) == 5
