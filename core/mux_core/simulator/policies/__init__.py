"""Scheduling policies of a unit by the names people write.

`adbs` is the product's. The others replay what MuxServe released (arXiv 2404.02015, section 3.3),
from its behaviour and without its code: `adbs-released` is its loop, `adbs-fixed` the same without
the bug that starves large LLMs, `fix-adbs` its loop with equal token blocks for all and no
adaptation, `fcfs` and `roundrobin` its baselines.
"""

from collections.abc import Mapping
from typing import Final

from mux_core.errors import SpecError
from mux_core.simulator.adbs_policy import adbs
from mux_core.simulator.policies.released import AdbsRules, ReleasedAdbs
from mux_core.simulator.policies.sequence_caps import SequenceCaps, first_shares
from mux_core.simulator.policies.turns import Fcfs, RoundRobin
from mux_core.simulator.policy import PolicyFactory, UnitPolicy, UnitSetting

POLICIES: Final = ("adbs", "adbs-released", "adbs-fixed", "fix-adbs", "fcfs", "roundrobin")
_NONE: Final[Mapping[str, bool]] = {}


def policy_factory(name: str, switches: Mapping[str, bool] = _NONE) -> PolicyFactory:
    """Makes the policy of that name for a unit. Raises SpecError for a switch it lacks."""
    if name not in POLICIES:
        raise SpecError(f"policy {name}: unknown; one of {', '.join(POLICIES)}")
    if name in ("adbs-released", "adbs-fixed", "fix-adbs"):
        return _released(name, switches)
    if switches:
        raise SpecError(f"policy {name}: has no switches; those belong to adbs-released, "
                        "adbs-fixed and fix-adbs")  # fmt: skip
    if name == "adbs":
        return adbs
    return (lambda setting: Fcfs()) if name == "fcfs" else (lambda setting: RoundRobin())


def _released(name: str, switches: Mapping[str, bool]) -> PolicyFactory:
    rules = AdbsRules(swapped_return=name != "adbs-fixed").with_switches(switches)
    fixed = name == "fix-adbs"

    def make(setting: UnitSetting) -> UnitPolicy:
        caps = SequenceCaps(shares=first_shares(setting, equal=fixed), adapts=not fixed)
        return ReleasedAdbs(name=name, rules=rules, caps=caps)

    return make
