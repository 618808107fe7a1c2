"""A share is a number of SMs, and another number is refused by name."""

import pytest

from mux_core.reasons import Reason
from mux_runtime.sm.partition import NoPartition
from mux_runtime.sm.shares import ShareNotVerified, check_share, expected_sms
from sm_builders import FakePartition


@pytest.mark.parametrize(
    ("percent", "gpu_sms", "expected"),
    [
        pytest.param(100, 132, (132, 132), id="the whole GPU"),
        pytest.param(50, 132, (66, 66), id="whole pairs"),
        pytest.param(25, 188, (46, 48), id="half a pair goes either way"),
        pytest.param(10, 132, (12, 14), id="a tenth"),
        pytest.param(1, 132, (1, 2), id="never none"),
        pytest.param(90, 7, (6, 7), id="an odd GPU has no more than all"),
    ],
)
def test_a_share_in_sms(percent: int, gpu_sms: int, expected: tuple[int, int]) -> None:
    assert expected_sms(percent, gpu_sms) == expected


@pytest.mark.parametrize("percent", range(1, 101))
def test_rounding_is_by_less_than_a_pair_and_more_never_looks_like_less(percent: int) -> None:
    low, high = expected_sms(percent, 132)
    assert low <= percent * 1.32 + 1e-9 or low == 1
    assert percent * 1.32 <= high + 1e-9
    assert high - low <= 2
    if percent < 98:
        assert high < 132, "a missing limit would pass"


@pytest.mark.parametrize(
    ("percent", "seen", "reason"),
    [
        (30, 132, Reason.NO_LIMIT_OBSERVED),
        (30, 66, Reason.SM_COUNT_MISMATCH),
        (30, 36, Reason.SM_COUNT_MISMATCH),
        (100, 66, Reason.SM_COUNT_MISMATCH),
        (30, 0, Reason.SM_COUNT_MISMATCH),
    ],
)
def test_another_number_is_refused_with_the_figures(
    percent: int, seen: int, reason: Reason
) -> None:
    with pytest.raises(ShareNotVerified, match=f"sees {seen} of 132 SMs") as refused:
        check_share(host="a-decode-1", percent=percent, seen=seen, gpu_sms=132)
    assert refused.value.reason is reason


@pytest.mark.parametrize("seen", [38, 40])
def test_either_rounding_passes(seen: int) -> None:
    check_share(host="a-decode-1", percent=30, seen=seen, gpu_sms=132)


def test_without_a_gpu_a_process_is_kept_off_any_and_nothing_is_checked() -> None:
    assert NoPartition().environment(30) == {"CUDA_VISIBLE_DEVICES": ""}
    NoPartition().verify("a", pid=1, percent=30, seen_sms=0)


@pytest.mark.parametrize("kind", ["none", "exact"])
def test_fakes_that_pass(kind: str) -> None:
    FakePartition(kind).verify("a", pid=1, percent=30, seen_sms=0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("wrong share", Reason.NO_LIMIT_OBSERVED), ("refusing", Reason.MPS_UNAVAILABLE)],
)
def test_fakes_that_refuse(kind: str, reason: Reason) -> None:
    with pytest.raises(ShareNotVerified) as refused:
        FakePartition(kind).verify("a", pid=1, percent=30, seen_sms=0)
    assert refused.value.reason is reason
