"""By what a profile is made: the commit."""

import shutil
import subprocess
from pathlib import Path


def commit() -> str:
    """The commit of the checkout this runs from; `unknown` where it is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "unknown"
    said = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    return said.stdout.strip() or "unknown"
