"""One run: what a request goes through, what the record says of it, what is refused."""

import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mux_core.adbs import Limits
from mux_core.costmodel.interference import DEFAULT_INTERFERENCE
from mux_core.costmodel.profile import profile_of
from mux_core.errors import InvariantError, SpecError
from mux_core.estimator.memory import overhead_s
from mux_core.simulator.adbs_policy import AdbsPolicy, adbs
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.kv import planned_kv
from mux_core.simulator.policy import Decision
from mux_core.simulator.record import RunRecord
from mux_core.simulator.run import Run, Settings
from mux_core.units import ModelName
from simulator_builders import llm, member, placed, problem, run, traffic

A, B = ModelName("a"), ModelName("b")


def one(at: float = 0.0, prompt: int = 161, output: int = 5, model: ModelName = A) -> Arrival:
    return Arrival(at, model, prompt, output)


def digest(record: RunRecord) -> str:
    """Of everything a record says."""
    found = sha256()
    for name, log in record.requests.items():
        found.update(name.encode())
        for column in (log.arrived, log.first, log.finished, log.prompt, log.output):
            found.update(column.tobytes())
    for item in record.members:
        found.update(item.kv_samples.tobytes() + item.batch_samples.tobytes())
        text = repr((item.unit, item.model, item.kv_mean, item.kv_max, item.busy,
                     item.batch_mean, item.decode_steps, item.preempted))  # fmt: skip
        found.update(text.encode())
    found.update(repr((record.spans, record.events, sorted(record.checks.items()))).encode())
    return found.hexdigest()


class TestOneRequest:
    def test_takes_its_prefill_and_one_step_per_further_token(self) -> None:
        asked = llm("a")
        record = run([asked], placed([member("a")]), iter([one(at=2.0)]))
        profile = profile_of(asked, "a100-80gb")
        first = profile.prefill_s(tensor=1, percent=100, batch=1, tokens=161)
        steps = [
            profile.decode_s(tensor=1, percent=50, batch=1, context=(length // 8 + 0.5) * 8)
            + overhead_s(asked)
            for length in range(162, 166)
        ]
        log = record.requests[A]
        assert log.first[0] - 2.0 == pytest.approx(first)
        assert log.finished[0] - log.first[0] == pytest.approx(sum(steps))

    def test_of_one_token_ends_with_its_prefill(self) -> None:
        record = run([llm("a")], placed([member("a")]), iter([one(output=1)]))
        log = record.requests[A]
        assert log.finished[0] == log.first[0]
        assert record.members[0].decode_steps == 0

    def test_that_is_not_done_when_the_clock_stops_stays_open(self) -> None:
        record = run([llm("a")], placed([member("a")]), iter([one(output=900)]), seconds=1.0)
        log = record.requests[A]
        assert log.first[0] < 1.0
        assert np.isnan(log.finished[0])
        assert (record.until, record.checks["lambda a"]) == (1.0, 1.0)

    def test_too_long_for_the_members_kv_is_rejected(self) -> None:
        small = placed([member("a", kv_gib=0.25)])
        record = run([llm("a")], small, iter([one(prompt=500, output=200), one(at=1.0)]))
        log = record.requests[A]
        assert np.isnan(log.first[0])
        assert log.finished[1] > 1.0
        assert log.rejected == 1


class TestInterference:
    def spans(self, **settings: object) -> dict[tuple[str, str], float]:
        """Longest step of each member and phase: `a` decodes when `b` is prefilled."""
        arrivals = iter([one(output=400), one(at=1.0, prompt=900, output=1, model=B)])
        record = run([llm("a"), llm("b")], placed([member("a"), member("b")]), arrivals,
                     seconds=4.0, **settings)  # fmt: skip
        found: dict[tuple[str, str], float] = {}
        for span in record.spans:
            key = (span.model, span.phase)
            found[key] = max(found.get(key, 0.0), span.end - span.begin)
        return found

    def test_a_prefill_and_a_decode_slow_each_other(self) -> None:
        beside, apart = self.spans(), self.spans(interference=None)
        assert beside["b", "prefill"] / apart["b", "prefill"] == pytest.approx(
            1 + DEFAULT_INTERFERENCE.prefill_by_decode
        )
        slower = beside["a", "decode"] / apart["a", "decode"]  # of steps at other lengths
        assert 1.15 < slower <= 1 + DEFAULT_INTERFERENCE.decode_by_prefill

    def test_decodes_share_the_memory_bus(self) -> None:
        arrivals = [one(output=50), one(output=50, model=B)]
        two = placed([member("a"), member("b")])
        slowed, free = (
            run([llm("a"), llm("b")], two, iter(arrivals), interference=interference)
            for interference in (DEFAULT_INTERFERENCE, None)
        )
        assert slowed.requests[A].finished[0] > free.requests[A].finished[0]


class TestPercents:
    def overlaps(self, limits: Limits) -> set[tuple[str, str]]:
        arrivals = traffic({"a": 3.0, "b": 3.0}, until=20.0)
        record = run(
            [llm("a"), llm("b")], placed([member("a"), member("b")]), arrivals,
            seconds=20.0, spans_s=20.0, policy=lambda _: AdbsPolicy(limits=limits),
        )  # fmt: skip
        found = set()
        for one_span in record.spans:
            for other in record.spans:
                if one_span.begin < other.begin < one_span.end:
                    found.add((one_span.phase, other.phase))
        return found

    def test_are_shares_where_they_sum_to_100(self) -> None:
        assert self.overlaps(Limits()) == {("decode", "decode")}

    def test_are_caps_where_they_may_sum_to_more(self) -> None:
        limits = Limits(sm_percent=200, max_prefills=1)
        assert self.overlaps(limits) == {("decode", "decode"), ("decode", "prefill"),
                                         ("prefill", "decode")}  # fmt: skip


class TestReplicas:
    def test_share_requests_by_their_planned_rate(self) -> None:
        two = placed([member("a", rate=3.0)], [member("a", rate=1.0)])
        record = run([llm("a")], two, traffic({"a": 8.0}, until=60.0))
        large, small = (m.prefill_steps for m in record.members)
        assert 2 < large / small < 5

    @pytest.mark.parametrize(("planned", "low", "high"), [((0.0, 0.0), 1.5, 2.5),
                                                          ((5.0, 9.0), 0.9, 1.1)])  # fmt: skip
    def test_that_are_slow_get_their_rate_where_their_concurrency_is_planned(
        self, planned: tuple[float, float], low: float, high: float
    ) -> None:
        """Equal rates at shares of 100 and 20 %; steps of the latter take nearly twice as long."""
        two = placed(*([replace(member("a", rate=8.0, decode=share, kv_gib=30.0), concurrency=busy)]
                       for share, busy in zip((100, 20), planned, strict=True)))  # fmt: skip
        record = run([llm("a")], two, traffic({"a": 16.0}, until=60.0), seconds=60.0)
        fast, slow = (m.prefill_steps for m in record.members)
        assert low < fast / slow < high

    def test_a_queues_bound_rejects(self) -> None:
        arrivals = [one(at=1.0, prompt=1000) for _ in range(20)]
        record = run([llm("a")], placed([member("a")]), iter(arrivals), max_queue=5)
        assert np.count_nonzero(np.isnan(record.requests[A].finished)) == 20 - 5


class TestRefusals:
    @pytest.mark.parametrize(
        ("arrivals", "message"),
        [
            ([one(at=2.0), one(at=1.0)], "sort them by time"),
            ([one(at=-1.0)], "from 0 on"),
            ([one(at=float("nan"))], "from 0 on"),
            ([one(model=ModelName("ghost"))], "ghost"),
        ],
    )
    def test_of_arrivals_name_them(self, arrivals: list[Arrival], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            run([llm("a")], placed([member("a")]), iter(arrivals))

    def test_of_a_plan_for_another_workload(self) -> None:
        with pytest.raises(SpecError, match="LLM b"):
            run([llm("a")], placed([member("b")]), iter([]))

    def test_of_a_unit_whose_weights_leave_no_room(self) -> None:
        crowd = [llm(name, "llama-30b") for name in "ab"]
        with pytest.raises(SpecError, match="leave"):
            run(crowd, placed([member("a"), member("b")]), iter([]))

    @pytest.mark.parametrize("changes", [{"seconds": 0.0}, {"warmup": -1.0}, {"sample_s": 0.0},
                                         {"seconds": float("inf")}])  # fmt: skip
    def test_of_settings(self, changes: dict[str, float]) -> None:
        with pytest.raises(SpecError, match=next(iter(changes))):
            Settings(**changes)

    def test_of_a_policy_that_grants_what_is_not_there(self) -> None:
        class Wild(AdbsPolicy):
            def decide(self, load, queues, now):  # type: ignore[no-untyped-def]
                round = super().decide(load, queues, now).round
                grants = [replace(grant, rows=10**6) for grant in round.grants]
                return Decision(replace(round, grants=tuple(grants)))

        with pytest.raises(InvariantError, match="policy adbs grants a prefill 1000000 rows"):
            run([llm("a")], placed([member("a")]), iter([one()]), policy=lambda _: Wild())


def test_stopping_early_is_told_and_keeps_what_was() -> None:
    told: list[float] = []
    record = run([llm("a")], placed([member("a")]), traffic({"a": 20.0}, until=60.0),
                 on_progress=told.append, stop=lambda: len(told) > 1)  # fmt: skip
    assert record.interrupted
    assert 0 < record.until == told[-1] < 60.0
    assert len(record.requests[A].arrived) > 0


def test_a_warm_up_is_not_in_the_figures() -> None:
    arrivals = [one(at=0.0, output=20), one(at=50.0, output=20)]
    record = run([llm("a")], placed([member("a")]), iter(arrivals), warmup=40.0, seconds=20.0)
    assert len(record.requests[A].arrived) == 2
    assert (record.members[0].prefill_steps, record.members[0].decode_steps) == (1, 19)
    assert record.checks["lambda a"] == pytest.approx(1 / 20)
    assert record.members[0].kv_samples[0][0] == 40.0
    assert len(record.members[0].kv_samples) == 21


CASE = """
import sys
sys.path.insert(0, {path!r})
from test_run import digest, small_case
print(digest(small_case()))
"""


def small_case() -> RunRecord:
    models = [llm("a"), llm("b", "llama-13b"), llm("c")]
    units = placed([member("a", kv_gib=1.0), member("b", kv_gib=2.0)],
                   [member("a", kv_gib=2.0), member("c", kv_gib=1.0)])  # fmt: skip
    arrivals = traffic({"a": 6.0, "b": 1.0, "c": 2.0}, until=12.0, output=120)
    return run(models, units, arrivals, seconds=10.0, warmup=2.0, kv=planned_kv)


def test_the_same_run_in_any_process() -> None:
    here = os.path.dirname(__file__)
    code = CASE.format(path=here)
    told = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                       env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "tests"},
                       ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert told == {digest(small_case())}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rates=st.lists(st.floats(0.3, 12.0), min_size=1, max_size=3),
    kv_gib=st.floats(0.3, 2.0),
    borrow=st.booleans(),
    guaranteed=st.sampled_from([0.0, 0.5, 1.0]),
    percents=st.lists(st.sampled_from([10, 30, 60, 100]), min_size=3, max_size=3),
    limits=st.sampled_from([
        Limits(), Limits(sm_percent=200, max_prefills=1), Limits(max_seqs=3, reclaim_rounds=1),
        Limits(sm_percent=200, prefill_tokens=100, prefill_turns=1),
    ]),
)  # fmt: skip
def test_the_books_balance_at_every_event(
    seed: int, rates: list[float], kv_gib: float, borrow: bool, guaranteed: float,
    percents: list[int], limits: Limits,
) -> None:  # fmt: skip
    """Blocks, SM parts and requests, under any load; `check` raises where one does not hold."""
    names = "abc"[: len(rates)]
    units = placed([
        member(name, kv_gib=kv_gib, limit_gib=6.0 if borrow else None, decode=percent)
        for name, percent in zip(names, percents, strict=False)
    ])  # fmt: skip
    arrivals = traffic(dict(zip(names, rates, strict=True)), until=8.0, seed=seed, output=100)
    record = run([llm(name) for name in names], units, arrivals, seconds=8.0, kv=planned_kv,
                 guaranteed=guaranteed, policy=lambda _: AdbsPolicy(limits=limits))  # fmt: skip
    for log in record.requests.values():
        assert (np.diff(log.arrived) >= 0).all()
        done = ~np.isnan(log.finished)
        assert (log.first[done] > log.arrived[done]).all()
        assert (log.finished[done] >= log.first[done]).all()
    for item in record.members:
        assert 0 <= item.kv_mean <= item.kv_max <= 1
        assert item.busy <= 1 + 1e-9


def test_a_policy_is_told_of_its_unit() -> None:
    seen = []

    def factory(setting):  # type: ignore[no-untyped-def]
        seen.append(setting)
        return adbs(setting)

    run([llm("a")], placed([member("a")]), iter([]), policy=factory)
    assert seen[0].row_units == {A: 2048}
    assert seen[0].block_tokens == {A: 32}
    assert seen[0].kv_units == pytest.approx((76 - 14 - 2) * 2**30 / 8192, rel=1e-3)


class TestPreemption:
    def crowded(self, *, keeps: bool = True) -> RunRecord:
        class Policy(AdbsPolicy):
            def decide(self, load, queues, now):  # type: ignore[no-untyped-def]
                return replace(super().decide(load, queues, now), keeps_output=keeps)

        units = placed([member("a", kv_gib=0.6), member("b", kv_gib=1.0)])
        arrivals = traffic({"a": 3.0, "b": 1.0}, until=12.0, prompt=60, output=300)
        return run([llm("a"), llm("b")], units, arrivals, seconds=150.0, kv=planned_kv,
                   policy=lambda _: Policy())  # fmt: skip

    def test_sets_back_and_serves_everybody_in_the_end(self) -> None:
        record = self.crowded()
        log = record.requests[A]
        assert sum(m.preempted for m in record.members) > 10
        assert np.count_nonzero(np.isnan(log.finished)) == log.rejected < len(log.arrived) / 10

    def test_that_drops_outputs_costs_more_steps(self) -> None:
        kept, dropped = self.crowded(), self.crowded(keeps=False)
        assert dropped.members[0].decode_steps > kept.members[0].decode_steps
        log = dropped.requests[A]
        assert np.count_nonzero(np.isnan(log.finished)) == log.rejected


def test_time_never_goes_back() -> None:
    going = Run(problem(llm("a")), placed([member("a")]), iter([]), adbs, Settings())
    going.now = 5.0
    with pytest.raises(InvariantError, match=r"4\.0 s at 5\.0 s"):
        going.at(4.0, lambda _: None)


@pytest.mark.parametrize("wish", [-1.0, 0.0, 2.5])
def test_a_policy_is_asked_again_when_it_wishes(wish: float) -> None:
    """Even where the wished moment has passed already."""
    asked: list[float] = []

    class Wishing(AdbsPolicy):
        def decide(self, load, queues, now):  # type: ignore[no-untyped-def]
            asked.append(now)
            wished = 1.0 + wish
            again = wished if len(asked) == 1 or now < wished else None
            return replace(super().decide(load, queues, now), again_at=again)

    run([llm("a")], placed([member("a")]), iter([one(at=1.0, output=1)]), seconds=9.0,
        policy=lambda _: Wishing())  # fmt: skip
    assert 1.0 + max(0.0, wish) in asked[1:]
