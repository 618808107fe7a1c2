"""A host whose share is not what was asked never serves, and the member says why."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from mux_core.engine import HostStats, Phase
from mux_core.lifecycle import MemberState
from mux_core.reasons import Reason
from mux_runtime.brain.hosts import HostProcess
from mux_runtime.brain.members import UnitMembers
from mux_runtime.brain.report import unit_status
from mux_runtime.control import control_pb2 as pb
from mux_runtime.engines.host import EngineDescription
from mux_runtime.sm.shares import ShareNotVerified
from mux_runtime.wire import HostLink
from scheduler_builders import geometry, unit
from scheduler_builders import spec as member_spec
from sm_builders import FakePartition
from unit_tree_builders import unit_spec


class OpenLink:
    """A host's connection after its start: opens, and says what it sees."""

    async def open(self) -> EngineDescription:
        return EngineDescription(geometry=geometry(), weight_bytes=1, max_model_len=8, vocab=8,
                                 eos_token_ids=())  # fmt: skip

    async def stats(self) -> HostStats:
        return HostStats(waiting=0, running=0, owned_rows=0, peak_bytes=1, sms=38)


def process(partition: FakePartition) -> tuple[HostProcess, list[str]]:
    left: list[str] = []
    made = HostProcess(
        name="a-decode-1", leave=lambda: left.append("gate"), pid=7,
        check_share=lambda pid, sms: partition.verify("a-decode-1", pid=pid, percent=30,
                                                      seen_sms=sms),
    )  # fmt: skip
    made.hello.set_result(cast("HostLink", OpenLink()))
    return made, left


async def test_a_verified_host_opens_and_tells_its_sms() -> None:
    host, left = process(FakePartition("exact"))
    assert (await host.open()).vocab == 8
    assert (host.sms, left) == (38, ["gate"])


@pytest.mark.parametrize("kind", ["wrong share", "refusing"])
async def test_another_share_is_refused_and_lets_the_next_host_start(kind: str) -> None:
    host, left = process(FakePartition(kind))
    with pytest.raises(ShareNotVerified):
        await host.open()
    assert left == ["gate"]


async def test_a_new_share_is_told_until_the_host_starts_again(tmp_path: Path) -> None:
    box = unit()
    wanted = unit_spec([member_spec("a")], memory_bytes=512 * 256, unit_bytes=256)
    members = UnitMembers(box.scheduler, wanted, tmp_path / "spec.json")
    members.reconcile()
    await box.serving("a")

    def told() -> pb.MemberStatus:
        (one,) = unit_status(members, "s", answering=None, unanswerable={}).members
        return one

    box.scheduler.resize_member(member_spec("a", decode_percent=50))
    assert told().message == "", "without a GPU the new share holds at once"
    box.host("a", Phase.DECODE).sms = 38
    assert told().message == ("its decode host runs at 30 % of the SMs until it starts again; "
                              "50 % is planned")  # fmt: skip
    assert {h.phase: (h.planned_percent, h.seen_sms) for h in told().hosts} == {
        "prefill": (60, 0), "decode": (50, 38)}  # fmt: skip
    await box.scheduler.close()


async def test_a_member_whose_host_has_a_wrong_share_fails_with_the_reason() -> None:
    box = unit()
    box.starter.broken["a"] = lambda: ShareNotVerified(
        "host a-decode-1: sees 132 of 132 SMs, its share of 30 % is 38 to 40",
        reason=Reason.NO_LIMIT_OBSERVED,
    )
    member = box.scheduler.add_member(member_spec("a"))
    async with asyncio.timeout(5):
        while member.state is not MemberState.FAILED:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert (member.reason, member.permanent) == (Reason.NO_LIMIT_OBSERVED, True)
    assert "sees 132 of 132 SMs" in member.message
    assert box.scheduler.models() == ()
    await box.scheduler.close()
