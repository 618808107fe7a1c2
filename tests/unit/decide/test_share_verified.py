"""ShareVerified from what the hosts see: measured, refused, or not to be told."""

from dataclasses import replace

import pytest

from decide_world import World, llm
from mux_core.pool_verdicts import Outcome
from mux_core.reasons import ConditionType, Reason
from mux_core.snapshot import MemberReport
from mux_core.status import Condition, Truth
from mux_core.units import ModelName
from mux_core.unitspec import Device
from mux_core.verdicts import statuses

A = ModelName("a")
WRONG = MemberReport(model=A, state="Failed", reason=Reason.NO_LIMIT_OBSERVED,
                     message="host a-decode-1: sees 132 of 132 SMs", seen_sms=(0, 132))  # fmt: skip
RIGHT = MemberReport(model=A, state="Serving", seen_sms=(66, 38))


def judged(*told: MemberReport, neighbours: int = 1) -> Condition:
    """Of a model with one replica per report, each in a CUDA unit."""
    world = World(slots=len(told))
    world.add(llm("a", replicas=len(told)))
    world.add(*(llm(f"b{n}", replicas=len(told)) for n in range(neighbours)))
    world.settle()
    assert world.seen.pool is not None
    pool = replace(world.seen.pool, spec=replace(world.seen.pool.spec, device=Device.CUDA))
    _, asked, choice = world.plan()
    snapshot = world.snapshot()
    reports = {
        unit: replace(report, members={**report.members, A: said})
        for (unit, report), said in zip(sorted(snapshot.reports.items()), told, strict=True)
    }
    snapshot = replace(snapshot, seen=replace(snapshot.seen, pool=pool), reports=reports)
    status = statuses(Outcome(snapshot=snapshot, asked=asked, choice=choice)).llms[A]
    found = status.condition(ConditionType.SHARE_VERIFIED)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("told", "truth", "reason", "message"),
    [
        pytest.param([RIGHT], Truth.TRUE, Reason.MEASURED,
                     "its hosts see 66, 38 SMs, as planned", id="measured"),
        pytest.param([replace(RIGHT, seen_sms=(66, 0))], Truth.UNKNOWN, Reason.NOT_MEASURED, "",
                     id="one host not measured"),
        pytest.param([replace(RIGHT, seen_sms=())], Truth.UNKNOWN, Reason.NOT_MEASURED, "",
                     id="no host"),
        pytest.param([replace(RIGHT, state="Starting")], Truth.UNKNOWN, Reason.NOT_MEASURED, "",
                     id="starting"),
        pytest.param([WRONG], Truth.FALSE, Reason.NO_LIMIT_OBSERVED, WRONG.message, id="refused"),
        pytest.param([RIGHT, WRONG], Truth.UNKNOWN, Reason.NOT_MEASURED, WRONG.message,
                     id="one of two replicas refused"),
        pytest.param([RIGHT, RIGHT], Truth.TRUE, Reason.MEASURED,
                     "its hosts see 66, 38, 66, 38 SMs, as planned", id="both measured"),
    ],
)  # fmt: skip
def test_shares_are_judged_by_what_hosts_see(
    told: list[MemberReport], truth: Truth, reason: Reason, message: str
) -> None:
    found = judged(*told)
    assert (found.status, found.reason, found.message) == (truth, reason, message)


def test_one_alone_shares_with_nobody_unless_its_host_was_refused() -> None:
    assert judged(RIGHT, neighbours=0).reason is Reason.NOT_SHARED
    assert judged(WRONG, neighbours=0).reason is Reason.NO_LIMIT_OBSERVED
