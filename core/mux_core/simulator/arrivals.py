"""Requests as they arrive: who, when, how long."""

from dataclasses import dataclass

from mux_core.units import ModelName


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: `at` seconds after the start of the run, lengths in tokens, both at least 1."""

    at: float
    model: ModelName
    prompt: int
    output: int
