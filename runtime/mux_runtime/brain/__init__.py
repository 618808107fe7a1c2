"""`python -m mux_runtime brain`: the process that decides for one unit.

Unit scheduler, OpenAI front, UnitControl and metrics in one event loop. `hosts` starts engine
hosts through the supervisor, `members` brings the unit to its spec, `control` speaks gRPC,
`report` says how things are, `serving` puts the parts together.
"""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Serves one unit; see `serving`. Imported late: the parts are used without the whole."""
    from mux_runtime.brain.serving import main as serve

    return serve(argv)
