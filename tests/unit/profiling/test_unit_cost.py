"""What a unit costs, told from what its processes ran for loads of known work."""

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mux_core.costmodel.profile_set import Work
from mux_core.engine import Phase
from mux_core.errors import PeerError
from mux_runtime.core_time import CoreTime
from mux_runtime.profiling.probe_unit import core_seconds
from mux_runtime.profiling.unit_cost import (
    CROWD,
    LOADS,
    LONG,
    LONG_PROMPT,
    PROMPT,
    SHORT_PROMPT,
    HostSteps,
    Load,
    Ran,
    SoFar,
    served_steps,
    unit_cost,
)

SCHEDULER = Work(step_s=1e-3, token_s=1e-4, request_s=2e-3)
CLIENT = Work(step_s=2e-4, token_s=5e-5, request_s=5e-4)
DECODE_S = 3e-3
PREFILL_S = 1e-4
REQUEST_S = 4e-3


def ran(load: Load) -> Ran:
    """As a unit that works off its batch in step, one prefill each."""
    requests = load.streams * load.rounds
    steps = {Phase.PREFILL: requests, Phase.DECODE: load.rounds * (load.outputs - 1)}
    done = sum(steps.values()), requests * load.outputs, requests
    own_s = DECODE_S + load.streams * 4e-4

    def of(work: Work) -> float:
        return done[0] * work.step_s + done[1] * work.token_s + done[2] * work.request_s

    hosts = HostSteps(load=load, count=steps,
                      core_s={Phase.PREFILL: steps[Phase.PREFILL] * load.prompt * PREFILL_S,
                              Phase.DECODE: steps[Phase.DECODE] * own_s})  # fmt: skip
    return Ran(
        load=load, hosts={"m": hosts}, lasted_s=100.0,
        scheduler_s=of(SCHEDULER), client_s=of(CLIENT),
        decoding_s=(load.outputs - 1) * (own_s + SCHEDULER.of_step(load.streams)),
        ttft_s=load.prompt * PREFILL_S + REQUEST_S,
    )  # fmt: skip


ALL: Sequence[Ran] = [ran(load) for load in LOADS]


def test_work_is_told_apart_by_loads_that_have_more_of_one_thing() -> None:
    cost = unit_cost(ALL, (), cores=2)
    for found, made in ((cost.scheduler, SCHEDULER), (cost.client, CLIENT)):
        assert (found.step_s, found.token_s, found.request_s) == pytest.approx(
            (made.step_s, made.token_s, made.request_s))  # fmt: skip
    assert cost.cores_used == 1.0


def crowded(load: Load) -> Ran:
    """Two models at once; scheduler and client take twice as long as for one after the other."""
    one = ran(load)
    (hosts,) = one.hosts.values()
    return replace(one, hosts={"m": hosts, "n": hosts}, scheduler_s=4 * one.scheduler_s,
                   client_s=4 * one.client_s, lasted_s=10.0)  # fmt: skip


def test_models_that_are_served_at_once_say_what_that_takes() -> None:
    together = [crowded(load) for load in (*LOADS, CROWD)]
    cost = unit_cost(ALL, together, cores=2)
    assert cost.scheduler.token_s == pytest.approx(2 * SCHEDULER.token_s)
    assert cost.client.step_s == pytest.approx(2 * CLIENT.step_s)
    assert cost.step_s == pytest.approx(SCHEDULER.step_s), "as one client of one model saw it"
    (_, *_, most) = together
    ran_s = sum(sum(one.core_s.values()) for one in most.hosts.values())
    ran_s += most.scheduler_s + most.client_s
    assert cost.cores_used == pytest.approx(ran_s / (10.0 * 2))


def test_what_is_between_steps_is_what_a_round_takes_beyond_its_steps() -> None:
    cost = unit_cost(ALL, (), cores=2)
    assert (cost.step_s, cost.token_s) == pytest.approx((SCHEDULER.step_s, SCHEDULER.token_s))
    assert cost.request_s == pytest.approx(REQUEST_S)


def test_what_the_machine_s_host_took_is_part_of_a_step() -> None:
    steps = {Phase.PREFILL: 5, Phase.DECODE: 100}
    ran_s = {Phase.PREFILL: 1.0, Phase.DECODE: 2.0}
    before = SoFar(count=steps, ran_s=ran_s, machine=CoreTime(ran_s=10.0, stolen_s=7.0))
    after = SoFar(count={phase: 2 * count for phase, count in steps.items()},
                  ran_s={phase: 2 * seconds for phase, seconds in ran_s.items()},
                  machine=CoreTime(ran_s=15.0, stolen_s=8.0))  # fmt: skip
    found = after.since(before, LOADS[0])
    assert found.count == steps
    assert found.core_s == pytest.approx({Phase.PREFILL: 1.2, Phase.DECODE: 2.4})


def test_nothing_is_negative() -> None:
    cost = unit_cost([replace(one, decoding_s=0.0, ttft_s=0.0) for one in ALL], (), cores=2)
    assert (cost.step_s, cost.token_s, cost.request_s) == (0.0, 0.0, 0.0)


def test_steps_in_a_unit_are_seconds_of_a_core_per_step() -> None:
    found = served_steps([one.alone for one in ALL])
    assert found.batches == pytest.approx([load.streams for load in LONG])
    assert found.decode_s == pytest.approx([DECODE_S + load.streams * 4e-4 for load in LONG])
    assert found.prompts == [PROMPT, SHORT_PROMPT, LONG_PROMPT]
    assert found.prefill_s == pytest.approx([tokens * PREFILL_S for tokens in found.prompts])


def test_seconds_of_a_core_are_those_of_all_threads_even_ended_ones() -> None:
    thread = threading.Thread(target=lambda: sum(range(300_000)))
    thread.start()
    thread.join()
    before, seen, after = time.process_time(), core_seconds(os.getpid()), time.process_time()
    assert before <= seen <= after


def test_a_process_that_is_gone_is_said_to_be() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(PeerError, match="is gone"):
        core_seconds(child.pid)
