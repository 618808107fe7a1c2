"""Plans taken up while requests run: who serves when, what a move costs, and that none is lost."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mux_core.placement import GpuGroup, Placement, Unit
from mux_core.planners.moves import steps_between
from mux_core.planning import PlacementProblem, Plan, PlanReason, Prediction
from mux_core.simulator.kv import planned_kv
from mux_core.simulator.record import RunRecord
from mux_core.simulator.replanning import Loading, Replan
from mux_core.units import ModelName, UnitId
from simulator_builders import NODE, llm, member, placed, problem, run, traffic

A, B = ModelName("a"), ModelName("b")
LOADING = Loading(start_s=5.0, bytes_per_s=2e9)
SEVEN_B = 5.0 + 14 * 2**30 / 2e9
"""Seconds until a 7B serves on one GPU."""


def to(target: Placement, seen: list[PlacementProblem] | None = None, **changes: Any) -> Replan:
    """Takes up `target` at the first occasion."""

    def plan(asked: PlacementProblem) -> Plan:
        if seen is not None:
            seen.append(asked)
        steps = steps_between(asked, target, reason=PlanReason.SLO_GAIN)
        return Plan(strategy="told", proposed=target, steps=steps,
                    prediction=Prediction(goodput=0.0, worst_ratio=0.0, gpus_used=0))  # fmt: skip

    return Replan(**{"plan": plan, "every_s": 10.0, "loading": LOADING} | changes)


def unit(name: str, gpu: int, *members: Any) -> Unit:
    ordered = tuple(sorted(members, key=lambda m: m.model))
    return Unit(id=UnitId(name), group=GpuGroup(node=NODE.name, gpus=(gpu,)), members=ordered)


def units(*made: Unit) -> Placement:
    return Placement(units=tuple(sorted(made, key=lambda u: u.id)))


def moved(record: RunRecord, kind: str) -> Sequence[dict[str, Any]]:
    (move,) = record.moves
    return [dict(step) for step in move.steps if step["kind"] == kind]


def all_served(record: RunRecord) -> bool:
    return not any(np.isnan(log.finished).any() for log in record.requests.values())


def go(before: Placement, replan: Replan, rates: dict[str, float], **changes: Any) -> RunRecord:
    arrivals = traffic(rates, until=60.0, output=60)
    return run([llm(name) for name in rates], before, arrivals,
               **{"seconds": 120.0, "replan": replan} | changes)  # fmt: skip


class TestStarting:
    def test_a_replica_serves_when_it_is_loaded(self) -> None:
        before = units(unit("u0", 0, member("a")))
        after = units(unit("u0", 0, member("a")), unit("u1", 1, member("a")))
        record = go(before, to(after), {"a": 4.0}, spans_s=200.0)
        (start,) = moved(record, "StartEngine")
        assert start["ready_s"] == pytest.approx(SEVEN_B)
        first = min(span.begin for span in record.spans if span.unit == "u1")
        assert 10.0 + SEVEN_B <= first < 10.0 + SEVEN_B + 3.0
        assert record.gpus_used == pytest.approx((10 * 1 + 110 * 2) / 120)
        assert all_served(record)

    def test_engines_of_a_unit_load_one_after_the_other(self) -> None:
        before = units(unit("u0", 0, member("a"), member("b")))
        after = units(unit("u0", 0, member("a"), member("b")),
                      unit("u1", 1, member("a"), member("b")))  # fmt: skip
        record = go(before, to(after), {"a": 2.0, "b": 2.0})
        ready = [start["ready_s"] for start in moved(record, "StartEngine")]
        assert ready == [pytest.approx(SEVEN_B), pytest.approx(2 * SEVEN_B)]

    def test_weights_take_back_kv_that_is_in_use(self) -> None:
        """Two members fill the unit's KV with long answers; a third one's weights need it."""
        small = {"kv_gib": 1.0, "limit_gib": 60.0, "decode": 30}
        before = units(unit("u0", 0, member("a", **small)), unit("u1", 1, member("b", **small)))
        after = units(unit("u0", 0, member("a", **small), member("b", **small)),
                      unit("u1", 1, member("b", **small)))  # fmt: skip
        arrivals = traffic({"a": 25.0, "b": 0.5}, until=20.0, output=900)
        record = run([llm("a"), llm("b")], before, arrivals, seconds=30.0, replan=to(after),
                     guaranteed=0.5)  # fmt: skip
        (start,) = moved(record, "StartEngine")
        assert start["ready_s"] >= SEVEN_B
        joined = next(m for m in record.members if m.model == "b" and m.unit == "u0")
        assert joined.unit == "u0"


class TestMoving:
    def test_to_a_free_gpu_leaves_no_gap(self) -> None:
        before = units(unit("u0", 0, member("a")))
        after = units(unit("u1", 1, member("a")))
        record = go(before, to(after), {"a": 4.0})
        (move,) = moved(record, "MoveEngine")
        assert (move["source"], move["unserved_s"]) == ("u0", 0.0)
        assert {m.unit for m in record.members} == {"u0", "u1"}
        assert all_served(record)

    def test_onto_each_others_gpus_makes_requests_wait_and_loses_none(self) -> None:
        before = units(unit("u0", 0, member("a")), unit("u1", 1, member("b", decode=100)))
        after = units(unit("v0", 0, member("b", decode=100)), unit("v1", 1, member("a")))
        record = go(before, to(after), {"a": 4.0, "b": 2.0})
        gaps = {step["model"]: step["unserved_s"] for step in moved(record, "MoveEngine")}
        assert gaps["a"] > 0, "the first GPU had to be cleared"
        assert gaps["a"] < 4 * SEVEN_B
        assert all_served(record)
        log = record.requests[A]
        assert np.nanmax(log.first - log.arrived) < gaps["a"] + 5.0

    def test_that_ends_with_the_run_is_told_as_it_stands(self) -> None:
        before = units(unit("u0", 0, member("a")))
        after = units(unit("u1", 1, member("a")))
        record = go(before, to(after), {"a": 4.0}, seconds=12.0)
        (move,) = moved(record, "MoveEngine")
        assert move["ready_s"] is None

    def test_a_model_that_goes_finishes_what_it_has(self) -> None:
        before = units(unit("u0", 0, member("a"), member("b")))
        after = units(unit("u0", 0, member("a")))
        record = go(before, to(after), {"a": 2.0, "b": 2.0})
        log = record.requests[B]
        taken = log.arrived < 10.0
        assert not np.isnan(log.finished[taken]).any()
        assert np.isnan(log.first[~taken]).all()


class TestResizing:
    def test_shares_hold_when_new_processes_are_up(self) -> None:
        before = placed([member("a", decode=30)])
        after = placed([member("a", decode=90)])
        record = go(before, to(after), {"a": 2.0}, spans_s=120.0)
        changed = {span.percent for span in record.spans
                   if span.phase == "decode" and span.begin > 10.0 + LOADING.start_s}  # fmt: skip
        kept = {span.percent for span in record.spans
                if span.phase == "decode" and span.begin < 10.0 + LOADING.start_s}  # fmt: skip
        assert (kept, changed) == ({30}, {90})

    def test_kv_moves_at_once(self) -> None:
        before = placed([member("a", kv_gib=0.5), member("b", kv_gib=2.0)])
        after = placed([member("a", kv_gib=2.0), member("b", kv_gib=0.5)])
        record = go(before, to(after), {"a": 6.0, "b": 0.1}, kv=planned_kv)
        used = next(m for m in record.members if m.model == "a").kv_samples
        early, late = used[used[:, 0] < 10], used[(used[:, 0] > 20) & (used[:, 0] < 60)]
        assert early[:, 1].max() <= 0.2
        assert late[:, 1].max() > 0.2


class TestDemand:
    def asked(self, **changes: Any) -> list[PlacementProblem]:
        seen: list[PlacementProblem] = []
        here = units(unit("u0", 0, member("a", rate=1.0)))
        go(here, to(here, seen, every_s=30.0, **changes), {"a": 9.0})
        return seen

    def rate(self, asked: PlacementProblem) -> float:
        return asked.llms[0].demand.rate

    def test_is_measured_as_the_operator_measures(self) -> None:
        first, second, *_ = self.asked()
        assert self.rate(first) == pytest.approx(9.0, rel=0.3)
        assert self.rate(second) == pytest.approx(9.0, rel=0.3)
        assert [asked.now for asked in (first, second)] == [30.0, 60.0]

    def test_may_be_known(self) -> None:
        known: Callable[[float], dict[ModelName, float]] = lambda now: {A: now / 10}  # noqa: E731
        assert [self.rate(asked) for asked in self.asked(known=known)[:2]] == [3.0, 6.0]

    def test_unchanged_is_not_asked_about_again(self) -> None:
        assert len(self.asked(known=lambda now: {A: 3.0})) == 1

    def test_includes_what_waits(self) -> None:
        seen: list[PlacementProblem] = []
        slow = units(unit("u0", 0, member("a", rate=9.0, prefill=1, decode=1)))
        go(slow, to(slow, seen, every_s=50.0), {"a": 9.0})
        # At most twice what arrives, and two deviations of chance.
        assert 1.3 * 9.0 < self.rate(seen[0]) < 2.3 * 9.0

    def test_what_runs_is_current(self) -> None:
        before = units(unit("u0", 0, member("a")))
        after = units(unit("u1", 1, member("a")))
        seen: list[PlacementProblem] = []
        go(before, to(after, seen), {"a": 4.0})
        assert seen[0].current == before
        assert seen[-1].current == after

    def test_no_plan_is_made_while_one_is_carried_out(self) -> None:
        before = units(unit("u0", 0, member("a")))
        after = units(unit("u1", 1, member("a")))
        seen: list[PlacementProblem] = []
        slow = replace(LOADING, start_s=50.0)
        go(before, to(after, seen, loading=slow), {"a": 4.0})
        assert [asked.now for asked in seen][:2] == [10.0, 70.0]


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Up to three models on up to three GPUs, each somewhere; ids of units say little."""
    made = []
    for gpu, name in enumerate(draw(st.permutations(["u0", "u1", "u2"]))):
        names = draw(st.sets(st.sampled_from("abc"), max_size=3))
        if gpu == 0:
            names |= set("abc")
        made.append(unit(name, gpu, *(member(n, decode=30, kv_gib=5.0) for n in sorted(names))))
    fresh = draw(st.booleans())
    return units(*(replace(u, id=UnitId(f"v{u.id}")) if fresh else u for u in made if u.members))


@settings(max_examples=12, deadline=None)
@given(placements(), placements(), st.integers(0, 10**6))
def test_nobody_is_lost_whatever_moves(before: Placement, after: Placement, seed: int) -> None:
    """`check` asserts the books at every event; then everyone must have been served."""
    assume(all(old.group == new.group for old in before.units for new in after.units
               if old.id == new.id))  # fmt: skip
    rates = {"a": 2.0, "b": 1.0, "c": 0.5}
    arrivals = traffic(rates, until=20.0, seed=seed, output=12)
    record = run([llm(name) for name in rates], before, arrivals, seconds=130.0, replan=to(after))
    assert all_served(record)
    assert record.until == 130.0
    for move in record.moves:
        assert all(step.get("ready_s", 0.0) is not None for step in move.steps)


def test_a_static_run_has_no_moves() -> None:
    record = run([llm("a")], placed([member("a")]), traffic({"a": 1.0}, until=9.0), seconds=9.0)
    assert record.moves == ()
    assert problem(llm("a")).current == Placement()
