"""By what a profile is made: engine path, release and commit."""

import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

ENGINE_PATHS: Final[Mapping[str, str]] = {
    "cpu": "torch/cpu/gathered-rows-sdpa", "cuda": "torch/cuda/gathered-rows-sdpa",
}  # fmt: skip


def release() -> str:
    """The version of this installation."""
    try:
        return metadata.version("muxserve-operator")
    except metadata.PackageNotFoundError:
        return "unknown"


def commit() -> str:
    """The commit of the checkout this runs from; `unknown` where it is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "unknown"
    said = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    return said.stdout.strip() or "unknown"
