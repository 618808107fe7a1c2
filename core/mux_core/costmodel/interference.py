"""How steps of different members slow each other on one GPU group.

Two decodes share the memory bus: what they ask for together beyond its bandwidth stretches both.
A prefill (compute) and a decode (bandwidth) overlap well; each costs the other a little. The two
costs of overlap are assumptions within what MuxServe (arXiv 2404.02015, figure 4) and studies of
prefill-decode multiplexing report, not measurements of ours.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """`decode_by_prefill`: relative slowdown of decodes while a prefill runs all the time;
    `prefill_by_decode`: the reverse; `bus_efficiency`: share of the data sheet's bandwidth that
    decodes reach together (0.85: what large copies reach on an A100).
    """

    decode_by_prefill: float = 0.25
    prefill_by_decode: float = 0.15
    bus_efficiency: float = 0.85

    def bus_stretch(self, asked: float) -> float:
        """Factor on decode steps that together ask for `asked` of the data sheet's bandwidth."""
        return max(1.0, asked / self.bus_efficiency)

    def decode_factor(self, prefilling: float) -> float:
        """Factor on decode steps while prefills run for that part of the time."""
        return 1 + self.decode_by_prefill * min(1.0, prefilling)

    def prefill_factor(self, *, decoding: bool, prefilling: bool = False) -> float:
        """Factor on a prefill beside decodes, if there are any, or beside another prefill."""
        return 1 + self.prefill_by_decode * decoding


def bus_share(read_bytes: float, seconds: float, *, bandwidth: float) -> float:
    """Part of the data sheet's bandwidth that a step asks for which reads so much in that time."""
    return read_bytes / (seconds * bandwidth)


DEFAULT_INTERFERENCE = Interference()
