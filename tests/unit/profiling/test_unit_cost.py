"""What a crowd of hosts costs beyond its share of the cores, out of measured streams."""

import pytest

from mux_core.costmodel.profile_set import CROWD, CpuWork, UnitCost, Work
from mux_core.simulator.cores import together_s
from mux_runtime.profiling.unit_cost import Crowd, crowded

WORK = CpuWork(cores=2, unit=UnitCost(step_s=4e-4, scheduler=Work(step_s=3e-4, token_s=5e-5),
                                      client=Work(token_s=3e-5)))  # fmt: skip
ALONE = {1: 0.002, 8: 0.005}


def met(*, fixed: float, part: float) -> UnitCost:
    """Told streams that were slower by so much than sharing the cores explains."""
    shared = {batch: together_s(WORK, alone, batch, percent=33, hosts=CROWD)
              for batch, alone in ALONE.items()}  # fmt: skip
    return crowded(WORK, 33, {
        batch: Crowd(alone_s=alone, together_s=shared[batch] * (1 + part + fixed / alone))
        for batch, alone in ALONE.items()
    })  # fmt: skip


@pytest.mark.parametrize(("fixed", "part"), [(0.0, 0.0), (3e-4, 0.0), (0.0, 0.2), (3e-4, 0.2)])
def test_what_cores_do_not_explain_is_split_by_step_length(fixed: float, part: float) -> None:
    found = met(fixed=fixed, part=part)
    assert found.crowded_s == pytest.approx(fixed, abs=1e-9)
    assert found.crowded_part == pytest.approx(part, abs=1e-6)
    assert found.scheduler == WORK.unit.scheduler


def test_a_crowd_that_seems_faster_costs_nothing() -> None:
    found = met(fixed=-5e-4, part=0.0)
    assert (found.crowded_s, found.crowded_part) == (0.0, 0.0)


def test_a_crowd_is_charged_by_how_many_run() -> None:
    cost = UnitCost(crowded_s=0.1, crowded_part=0.5)
    assert [cost.crowded(1.0, others) for others in (0, 1, 2, 5)] == pytest.approx(
        [0.0, 0.3, 0.6, 0.6])  # fmt: skip
