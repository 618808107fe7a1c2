"""`muxserve status`: what a running `muxserve up` last said, read from its data directory."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mux_core.errors import SpecError
from mux_core.units import format_bytes


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
        for kind in ("predicted", "observed"):
            if model.get(kind):
                print(f"  {kind:10}{_figures(model[kind])}")
    return 0


def _figures(found: dict[str, Any]) -> str:
    """`arrives 2/s  served 2/s  ttft 31.0ms (p99 80.1ms)  ...`: what is known, in one line."""
    parts = [f"{word} {found[name]}/s" for word, name in (("arrives", "rate"), ("served", "served"))
             if name in found]  # fmt: skip
    for name in ("ttft", "tpot"):
        latency = found.get(name, {})
        tail = f" (p99 {latency['p99']})" if "p99" in latency else ""
        if latency:
            parts.append(f"{name} {latency.get('mean', '-')}{tail}")
    if "attainment" in found:
        parts.append(f"within SLO {float(found['attainment']):.1%}")
    if "kv" in found:
        parts.append(f"KV {format_bytes(int(found['kv']))}")
    if "costs" in found:
        parts.append(f"costs {found['costs']}")
    return "  ".join(parts)


def _runs(pid: int) -> bool:
    try:
        return "up" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return False
