"""The OpenAI endpoint in front of all units: routes by model, holds, retries, counts."""

from mux_runtime.gateway.main import main

__all__ = ["main"]
