"""What the simulator's benchmarks show, held on short runs: far enough from the bars to be stable.

The benchmarks under benchmarks/simulator print the figures on long runs; these only notice when
one of them is about to change.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "simulator"))

import attainment
import headline
import pair
import published
import starvation
from runs import Traffic, Window, measure
from systems import ATTAINMENT, OURS, System, make_system

from mux_core.simulator.lengths import LengthShape
from mux_core.simulator.measures import goodput, latency, offered, served

SHORT = Window(seconds=120.0, warmup=30.0, tail=0.0, seeds=1)
BRIEF = Window(seconds=40.0, warmup=20.0, tail=60.0, seeds=1)


@pytest.fixture(scope="module")
def unit() -> starvation.Setting:
    return starvation.Setting("", LengthShape.SHAREGPT, starvation.FOUND_KV, SHORT)


def row(label: str) -> starvation.Row:
    return next(row for row in starvation.ROWS if row.label == label)


def ratios(unit: starvation.Setting, label: str) -> list[float]:
    runs = unit.measured(row(label)).runs
    return [served(runs, one.name) / offered(runs, one.name) for one in starvation.LLMS]


def test_the_released_loop_starves_a_30b(unit):
    assert min(ratios(unit, "adbs-released")[2:]) < 0.6


@pytest.mark.parametrize("label", ["adbs-fixed, no caps", "ours", "ours, own shares"])
def test_the_mended_loop_and_ours_serve_everybody(unit, label):
    # A window of 120 s ends a little more or less than began in it.
    assert min(ratios(unit, label)) >= 0.95


@pytest.mark.parametrize("label", ["ours", "ours, own shares"])
def test_nobody_waits_much_longer_beside_others_than_alone(unit, label):
    runs = unit.measured(row(label)).runs
    steps = unit.slowest_steps(row(label))
    for index, one in enumerate(starvation.LLMS):
        alone = unit.isolated_ttft(row(label), index)
        found = latency(runs, one.name, "ttft")
        assert found is not None
        assert found.mean <= max(2 * alone, alone + steps[index])


def test_the_65b_keeps_its_share_beside_a_hot_30b():
    table = pair.table_of(SHORT)
    found = {cells[0]: cells for cells in table.rows}
    assert found["ours"][-1] == "held"
    assert float(str(found["ours"][2])) > float(str(found["adbs-released"][2]))


def test_ours_serves_far_more_than_their_spatial_baseline_on_half_the_gpus():
    ours = headline.measured(OURS, headline.SCALE, BRIEF)
    theirs = headline.measured("spatial", headline.SCALE, BRIEF)
    assert ours is not None
    assert theirs is not None
    assert goodput(ours.runs) >= headline.GOODPUT_BAR * goodput(theirs.runs)
    assert ours.system.placement.gpus_used <= 20


def test_ours_attains_more_than_whole_gpu_replicas_on_their_gpus():
    llms = attainment.published()["2.1/0.5"]
    systems: list[System] = [make_system("spatial-replicas", llms)]
    gpus = systems[0].placement.gpus_used
    systems.append(make_system(ATTAINMENT, llms, gpus=gpus))
    theirs, ours = (measure(system, Traffic(llms=llms), BRIEF) for system in systems)
    assert ours.system.placement.gpus_used <= gpus
    for scale in attainment.SCALES:
        assert attainment.difference(ours, theirs, scale).value >= -0.01
    assert attainment.mean_attainment(ours.runs) > attainment.mean_attainment(theirs.runs)


def test_every_published_case_has_its_stored_runs():
    data = published.json.loads(published.read_text("muxserve_published.json"))
    cases = published.published()
    for case, stored in (data["synthetic"] | data["chatlmsys"]).items():
        assert len(stored["requests"]) == len(cases[case])
        for system in published.POLICIES:
            placed = published.system_of(system, stored, cases[case]).placement
            assert {member.model for _, member in placed.members()} == {
                llm.name for llm in cases[case]
            }
