"""`muxserve status`: what a running `muxserve up` last said, read from its data directory."""

import argparse
import json
import sys
from pathlib import Path

from mux_core.errors import SpecError


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve status`."""
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        help="the --port of the running `muxserve up` (default: %(default)s)",
    )
    parser.add_argument("--data-dir", type=Path, default=None,
                        help="its --data-dir, if it was given one")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Prints one line per model."""
    from mux_operator.local.datadir import default_root

    path = (args.data_dir or default_root(args.port)) / "status.json"
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}; is `muxserve up` running with this "
                        "--port and --data-dir?") from error  # fmt: skip
    if not _runs(document["pid"]):
        raise SpecError(f"{path}: written by pid {document['pid']}, which was killed; the next "
                        "`muxserve up` cleans up")  # fmt: skip
    print(f"{document['url']}  pid {document['pid']}")
    for model in document["models"]:
        print("  ".join([model["name"], model["served_name"], model["state"] or "-",
                         model["unit"] or "-", model["reason"], model["message"]]),
              file=sys.stdout)  # fmt: skip
    return 0


def _runs(pid: int) -> bool:
    try:
        return "up" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return False
