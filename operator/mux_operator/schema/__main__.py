"""Writes the CRDs into `crds/` and the chart, or checks that they are as the schema says."""

import argparse
import sys
from pathlib import Path

from mux_operator.schema.kinds import KINDS, as_yaml

_FOLDERS = ("crds", "charts/muxserve/crds")


def _files(root: Path) -> dict[Path, str]:
    return {
        root / folder / f"{kind.plural}.yaml": as_yaml(kind)
        for folder in _FOLDERS
        for kind in KINDS.values()
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mux_operator.schema", description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="write the files")
    mode.add_argument("--check", action="store_true", help="exit 1 when a file differs")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout")
    arguments = parser.parse_args()
    wanted = _files(arguments.root)
    stale = [p for p, content in wanted.items() if not p.exists() or p.read_text() != content]
    if arguments.check:
        for path in stale:
            print(f"{path} is not what the schema says; run make generate", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
