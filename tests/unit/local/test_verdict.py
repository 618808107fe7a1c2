"""When everything serves, when waiting is in vain, and what a person reads meanwhile."""

import io

import pytest

from mux_core.reasons import ConditionType, Reason
from mux_core.snapshot import LlmObject
from mux_core.status import Condition, LlmStatus, Truth
from mux_core.units import ModelName
from mux_operator.local.progress import Progress
from mux_operator.local.verdict import judge


def model(
    reason: Reason | None, *, permanent: bool = False, generation: int = 1, observed: int = 1
) -> LlmObject:
    conditions = ()
    if reason is not None:
        truth = Truth.TRUE if reason is Reason.READY else Truth.FALSE
        conditions = (Condition(type=ConditionType.READY, status=truth, reason=reason,
                                message="why", permanent=permanent),)  # fmt: skip
    status = LlmStatus(observed_generation=observed, served_name="m", unit="u0",
                       conditions=conditions)  # fmt: skip
    return LlmObject(name=ModelName("m"), uid="1", generation=generation, spec=None, status=status)


@pytest.mark.parametrize(
    ("llm", "field"),
    [
        pytest.param(model(None), "waiting", id="nothing is known yet"),
        pytest.param(model(Reason.READY), "serving", id="it serves"),
        pytest.param(model(Reason.READY, generation=2), "waiting", id="an older spec served"),
        pytest.param(model(Reason.STARTING), "waiting", id="it starts"),
        pytest.param(model(Reason.UNIT_UNREACHABLE), "waiting", id="its unit does not answer yet"),
        pytest.param(model(Reason.ENGINE_CRASHED), "waiting", id="a crash that is retried"),
        pytest.param(model(Reason.ENGINE_CRASHED, permanent=True), "failed", id="crashed for good"),
        pytest.param(model(Reason.POOL_NOT_FOUND), "failed", id="no such pool, nobody adds one"),
        pytest.param(model(Reason.DOES_NOT_FIT), "failed", id="this machine does not grow"),
        pytest.param(model(Reason.NAME_CONFLICT), "failed", id="the name is taken"),
        pytest.param(
            model(Reason.INVALID_SPEC, permanent=True), "waiting", id="its file was broken since"
        ),
        pytest.param(model(Reason.CORRUPT_CHECKPOINT), "failed", id="the files are broken"),
    ],
)
def test_a_model_serves_waits_or_has_failed(llm: LlmObject, field: str) -> None:
    verdict = judge([llm])
    found = {"serving": verdict.serving, "waiting": verdict.waiting,
             "failed": tuple(name for name, _ in verdict.failed)}  # fmt: skip
    assert found == {"serving": (), "waiting": (), "failed": (), field: ("m",)}
    assert verdict.settled is (field != "waiting")


def test_a_status_that_lasts_is_told_once() -> None:
    now, err = [0.0], io.StringIO()
    progress = Progress(clock=lambda: now[0], err=err, out=io.StringIO())
    starting, passing = model(Reason.STARTING).status, model(Reason.GATEWAY_DOWN).status
    for status in (starting, passing, starting):
        progress.told(ModelName("m"), None, status)
        progress.flush()
    now[0] = 1.0
    progress.flush()
    progress.told(ModelName("m"), None, starting)
    now[0] = 2.0
    progress.flush()
    progress.told(ModelName("m"), None, model(Reason.READY).status)
    assert err.getvalue().splitlines() == [
        "[   1.0 s] m: Starting: why",
        "[   2.0 s] m: serving as 'm' in u0",
    ]


def test_standard_output_holds_the_ready_line_alone() -> None:
    out, err = io.StringIO(), io.StringIO()
    progress = Progress(clock=lambda: 0.0, err=err, out=out)
    progress.line("something")
    progress.ready("http://127.0.0.1:1")
    assert out.getvalue() == "ready http://127.0.0.1:1\n"
