"""`muxserve status`: what a running `muxserve up` last said, read from its data directory."""

import argparse
import json
import sys
from pathlib import Path

from mux_core.errors import SpecError


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve status`."""
    parser.add_argument(
        "--data-dir", required=True, type=Path, help="the --data-dir of the running `muxserve up`"
    )


def run(args: argparse.Namespace) -> int:
    """Prints one line per model."""
    path = args.data_dir / "status.json"
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}; is `muxserve up` running with this "
                        "--data-dir?") from error  # fmt: skip
    print(f"{document['url']}  pid {document['pid']}")
    for model in document["models"]:
        print("  ".join([model["name"], model["served_name"], model["state"] or "-",
                         model["unit"] or "-", model["reason"], model["message"]]),
              file=sys.stdout)  # fmt: skip
    return 0
