"""What the scheduler may be told: bounds and patience. Times in seconds."""

from dataclasses import dataclass, field

from mux_core.adbs import Limits
from mux_core.quota import ADAPT_AFTER_HOLD_S, ADAPT_EVERY_S, URGENT_AFTER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`max_queue` requests wait per member. A step that takes longer than `hang_floor_s` and
    `hang_factor` times its host's mean is taken for hung. `tries` starts of a host in a row, with
    `backoff_s` doubling between them; a host that stays up `stable_s` begins anew. A request that
    was on `max_crashes` dying hosts is failed: it may be what kills them."""

    limits: Limits = field(default_factory=Limits)
    max_queue: int = 256
    hang_floor_s: float = 60.0
    hang_factor: float = 50.0
    tries: int = 5
    backoff_s: float = 0.25
    stable_s: float = 60.0
    max_crashes: int = 3
    adapt_every_s: float = ADAPT_EVERY_S
    adapt_after_hold_s: float = ADAPT_AFTER_HOLD_S
    urgent_after_s: float = URGENT_AFTER_S
    reclaim_after_s: float = 2.0
    audit_every_s: float = 5.0
