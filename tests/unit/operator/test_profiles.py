"""Measured profiles in the live planner: read at start or refused, and told by every plan."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from mux_core.costmodel.profile_file import dump_profiles
from mux_core.costmodel.profile_set import ProfileSet
from mux_core.costmodel.sources import ProfileCatalog, choose_costs
from mux_core.errors import SpecError
from mux_core.estimator.turns import TurnUnits
from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome
from mux_core.llm import Demand, Llm, ModelGeometry, Slo
from mux_core.placement import GpuNode
from mux_core.planners.forecast import predict
from mux_core.planning import PlacementProblem, Plan, best_plan
from mux_core.problem import question
from mux_core.profiled import ProfiledPlanner
from mux_core.units import GIB, Bytes, ModelName, NodeName
from mux_operator.profiles import Profiles, read_profiles
from mux_operator.search import SearchProcess
from profile_builders import MADE, model_profile, profile_set, shape
from world_builders import a_world, an_llm


def written(folder: Path, name: str = "here.json", **changes: object) -> Path:
    file = folder / name
    file.write_text(dump_profiles(profile_set(**changes)))
    return file


def mounted(folder: Path) -> Path:
    """As the kubelet lays out a ConfigMap."""
    inner = folder / "..2030_01_01"
    inner.mkdir(parents=True)
    written(inner)
    (folder / "..data").symlink_to(inner.name)
    (folder / "here.json").symlink_to("..data/here.json")
    return folder


def an_llm_of(name: str, geometry: ModelGeometry, **changes: object) -> Llm:
    return Llm(**{  # type: ignore[arg-type]
        "name": ModelName(name), "weight_bytes": geometry.weight_bytes, "geometry": geometry,
        "demand": Demand(rate=1.0)} | changes)  # fmt: skip


def problem(*llms: Llm, gpu: str = "cpu", memory: int = 4 * GIB) -> PlacementProblem:
    node = GpuNode(name=NodeName("n"), gpus=2, memory=Bytes(memory), gpu=gpu)
    return PlacementProblem(now=0.0, nodes=(node,), llms=llms)


def planned(asked: PlacementProblem, *sets: ProfileSet) -> Plan:
    return best_plan(ProfiledPlanner(Profiles.of(sets).by_gpu), asked)


def costs(plan: Plan) -> dict[str, str]:
    return {str(name): found.costs for name, found in plan.prediction.models.items()}


def test_a_mounted_config_map_is_read_file_by_file(tmp_path: Path) -> None:
    found = read_profiles([mounted(tmp_path / "map")])
    assert [p.made for p in found.by_gpu["cpu"].profiles] == [MADE]
    assert found.digest == read_profiles([written(tmp_path)]).digest
    assert found.digest != Profiles.of([profile_set(left_out=())]).digest
    assert read_profiles([]) == Profiles()


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.json", "cannot be read"),
    "empty folder": (lambda folder: folder, "holds no file; put what muxserve profile wrote"),
    "no JSON": (lambda folder: _text(folder, "x: 1"), "is not JSON"),
    "another release": (
        lambda folder: written(folder, made=replace(MADE, release="0.0.9")),
        "measured with release 0.0.9, this is 0.1.0; measure again",
    ),
    "another engine path": (
        lambda folder: written(folder, made=replace(MADE, path="torch/tpu")),
        "measured on engine path torch/tpu",
    ),
    "two devices of one type": (
        lambda folder: _two(folder),
        "profiles of different devices or engines",
    ),
}


def _text(folder: Path, text: str) -> Path:
    (folder / "p.json").write_text(text)
    return folder / "p.json"


def _two(folder: Path) -> Path:
    written(folder, "a.json")
    written(folder, "b.json", made=replace(MADE, device="another"))
    return folder


@pytest.mark.parametrize(("make", "said"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_the_fix(
    make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=said):
        read_profiles([make(tmp_path)])


def test_an_operator_with_a_bad_profile_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mux_operator", "--image", "muxserve:1", "--profiles",
               str(_text(tmp_path, "{}"))]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert f"ended: profile {tmp_path}/p.json: is no profile" in ended.stderr


def test_every_model_says_what_its_costs_stand_on() -> None:
    one, other = shape(), shape(layers=8)
    asked = problem(an_llm_of("known", one), an_llm_of("like", other))
    assert costs(planned(asked, profile_set())) == {"known": "measured", "like": "fitted"}
    assert costs(planned(asked)) == {"known": "data sheet", "like": "data sheet"}


def test_measured_steps_change_what_is_predicted() -> None:
    def slow(batch: int, tokens: int) -> float:
        return 0.2 + 0.001 * batch

    asked = problem(an_llm_of("a", shape(), demand=Demand(rate=0.1, output_tokens=16)))
    quick = planned(asked, profile_set()).prediction.models[ModelName("a")]
    slowly = profile_set(model_profile("a", shape(), decode=slow))
    tpot = planned(asked, slowly).prediction.models[ModelName("a")].tpot_mean_s
    assert tpot is not None
    assert quick.tpot_mean_s is not None
    assert tpot >= 0.2 > quick.tpot_mean_s


def test_a_profiled_cpu_is_predicted_by_turns() -> None:
    """As `muxserve validate` predicts it; what nobody profiled, as the search counts."""
    asked = problem(an_llm_of("a", shape(), demand=Demand(rate=5.0)), an_llm_of("b", shape()))
    plan = planned(asked, profile_set())
    catalog = ProfileCatalog((profile_set(),))
    found = choose_costs(asked.llms, asked.nodes, catalog, {})
    turns = TurnUnits(tables=found.tables, interference=catalog.interference, cpu=catalog.cpu)
    said = predict(replace(asked, llms=found.llms), plan.proposed, turns)
    ours = plan.prediction.models[ModelName("a")]
    assert replace(ours, costs="") == said.models[ModelName("a")]
    assert ours.kv_bytes
    assert planned(asked).prediction.models[ModelName("a")].kv_bytes


def by_turns(rate: float, memory: int) -> MemberOutcome:
    """A unit of one member, whatever a plan would send to it."""
    demand = Demand(rate=rate, prompt_tokens=161, output_tokens=337)
    asked = problem(an_llm_of("a", shape(), demand=demand, slo=Slo(ttft_s=1.0)))
    catalog = ProfileCatalog((profile_set(),))
    found = choose_costs(asked.llms, asked.nodes, catalog, {})
    kind = GroupKind(gpus=1, gpu="cpu", memory=Bytes(memory))
    turns = TurnUnits(tables=found.tables, interference=catalog.interference)
    (outcome,) = turns.outcome(kind, (Ask(llm=found.llms[0], rate=rate),)).members
    return outcome


def test_more_than_a_unit_can_do_makes_nothing_look_better() -> None:
    found = [by_turns(rate, 4 * GIB) for rate in (4.0, 9.0, 20.0, 100.0)]
    steps = [one.tpot_mean_s or 0.0 for one in found]
    assert steps == sorted(steps)
    assert found[0].served == 4.0
    assert [one.utilisation >= 1 for one in found] == [False, True, True, True]
    assert [one.attainment for one in found[1:]] == [0.0, 0.0, 0.0]
    assert all(one.ttft_mean_s == inf for one in found[1:])


def test_requests_wait_for_kv_that_others_hold() -> None:
    found = [by_turns(6.0, memory << 20) for memory in (4096, 40, 24, 16)]
    waits = [one.ttft_mean_s or 0.0 for one in found]
    assert waits == sorted(waits)
    assert waits[0] < 0.1 < waits[2]
    met = [one.attainment or 0.0 for one in found]
    assert met == sorted(met, reverse=True)
    assert found[-1].served < 6.0
    assert all((one.held or 0) < memory << 20
               for one, memory in zip(found, (4096, 40, 24, 16), strict=True))  # fmt: skip


def test_a_service_level_is_met_by_the_part_that_does() -> None:
    def attainment(**slo: float) -> float:
        llm = an_llm_of("a", shape(), demand=Demand(rate=1.0), slo=Slo(**slo))
        met = planned(problem(llm), profile_set()).prediction.attainment
        assert met is not None
        return met

    assert attainment(ttft_s=10.0, tpot_s=10.0) == pytest.approx(1.0)
    assert attainment(ttft_s=1e-6) == pytest.approx(0.0)
    assert attainment(tpot_s=1e-6) == pytest.approx(0.0)
    some = [attainment(ttft_s=seconds) for seconds in (0.0145, 0.016, 0.02, 0.03)]
    assert 0.9 < some[0] < some[1] < some[2] < some[3] < 1.0


def test_a_model_that_fits_no_profiled_degree_is_planned_by_its_data_sheet() -> None:
    large = an_llm_of("large", shape(hidden=1024, layers=8), weight_bytes=Bytes(5 * GIB),
                      allowed_tensor=(1, 2))  # fmt: skip
    wide = an_llm_of("wide", shape(), allowed_tensor=(2,))
    assert costs(planned(problem(large, wide), profile_set())) == {
        "large": "data sheet", "wide": "data sheet"}  # fmt: skip


def test_a_pool_of_another_gpu_type_says_that_profiles_are_not_used() -> None:
    plan = planned(problem(an_llm_of("a", shape()), gpu="a100-80gb"), profile_set())
    assert costs(plan) == {"a": "data sheet"}
    assert plan.notes[-1].startswith("profiles of cpu are not used: the nodes have a100-80gb")


@pytest.fixture
async def search() -> AsyncIterator[SearchProcess]:
    made = SearchProcess(Profiles.of([profile_set()]))
    yield made
    await made.close()


async def test_the_planners_process_counts_with_the_same_profiles(search: SearchProcess) -> None:
    asked = problem(an_llm_of("known", shape()), an_llm_of("like", shape(layers=8)))
    choice = await search.choose(asked, deadline_s=60)
    assert costs(choice.plan) == {"known": "measured", "like": "fitted"}
    assert search.profiles == Profiles.of([profile_set()]).digest


def test_other_profiles_are_another_question() -> None:
    snapshot = a_world(an_llm("a")).snapshot()
    bare, profiled = question(snapshot), question(replace(snapshot, profiles="abc"))
    assert bare.inputs_hash != profiled.inputs_hash
