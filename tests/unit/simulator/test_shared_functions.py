"""The simulator has no policy of its own: it calls the very functions the product calls."""

from types import ModuleType

import pytest

from mux_core import problem, routing
from mux_core.estimator import queueing
from mux_core.quota import ADAPT_AFTER_HOLD_S, ADAPT_EVERY_S, URGENT_AFTER_S
from mux_core.simulator import adbs_policy, kv, making, member, replanning, times, unit
from mux_core.simulator import routing as replicas
from mux_runtime.engines.torch import engine as torch_engine
from mux_runtime.gateway import desk
from mux_runtime.scheduler import members, memory, rounds
from mux_runtime.scheduler.settings import Settings


@pytest.mark.parametrize(
    ("name", "product", "simulator"),
    [
        ("adbs_round", rounds, adbs_policy),
        ("adapt", memory, adbs_policy),
        ("claim_weight", memory, member),
        ("prefill_batch", members, member),
        ("head_rows", members, member),
        ("growing_rows", members, member),
        ("wanted_rows", memory, member),
        ("covered", rounds, unit),
        ("victims", rounds, unit),
        ("least_loaded", desk, replicas),
        ("planned_weight", routing, replicas),
        ("room_bytes", queueing, kv),
        ("fixed_bytes", queueing, kv),
        ("kv_per_token", queueing, kv),
        ("overhead_s", queueing, times),
        ("bus_share", queueing, times),
        ("profile_of", queueing, making),
        ("planned_rate", problem, replanning),
    ],
)
def test_one_function_in_both(name: str, product: ModuleType, simulator: ModuleType) -> None:
    assert getattr(product, name) is getattr(simulator, name)


@pytest.mark.parametrize("name", ["check_request", "RowBooks"])
def test_one_set_of_refusals(name: str) -> None:
    from mux_core.simulator import host

    assert getattr(torch_engine, name) is getattr(host, name)


def test_quotas_are_adapted_at_the_same_moments() -> None:
    product = Settings()
    assert (product.adapt_every_s, product.adapt_after_hold_s, product.urgent_after_s) == (
        ADAPT_EVERY_S, ADAPT_AFTER_HOLD_S, URGENT_AFTER_S)  # fmt: skip
    assert (unit.ADAPT_EVERY_S, unit.ADAPT_AFTER_HOLD_S, unit.URGENT_AFTER_S) == (
        ADAPT_EVERY_S, ADAPT_AFTER_HOLD_S, URGENT_AFTER_S)  # fmt: skip
