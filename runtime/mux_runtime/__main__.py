"""`python -m mux_runtime ROLE ...`: starts one process of a unit, importing only what it needs."""

import sys
from importlib import import_module
from typing import Final

ROLES: Final = {
    "unit": "mux_runtime.supervisor",
    "brain": "mux_runtime.brain",
    "pool": "mux_runtime.kvpool.owner",
    "gateway": "mux_runtime.gateway",
    "inspect": "mux_runtime.inspect",
}
"""Role to the module whose `main(argv) -> int` plays it."""


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in ROLES:
        print(f"python -m mux_runtime: role {argv[:1]}; one of {', '.join(ROLES)}", file=sys.stderr)
        return 2
    result: int = import_module(ROLES[argv[0]]).main(argv[1:])
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
