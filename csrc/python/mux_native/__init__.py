"""Native parts of the MuxServe runtime. Knows neither torch nor CUDA at import."""

from mux_native._core import BlockAllocator, Exhausted, InvariantBroken, RunGeometry

__all__ = ["BlockAllocator", "Exhausted", "InvariantBroken", "RunGeometry"]
