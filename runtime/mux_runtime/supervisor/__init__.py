"""`python -m mux_runtime unit`: the process at the root of a unit. Spawns, reaps, kills; decides
nothing. Imports no model code, no HTTP and no gRPC, so that nothing can pull it down.
"""

from mux_runtime.supervisor.main import main

__all__ = ["main"]
