"""The door over real processes: a sleeping stand-in for a unit, a real inspect run."""

import asyncio
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mux_core.actions import (
    ForgetUnit,
    InspectModel,
    LabelUnit,
    PublishRoutes,
    StartUnit,
    StopUnit,
    Why,
    WriteUnit,
)
from mux_core.placement import GpuGroup
from mux_core.routes import RouteTable
from mux_core.snapshot import Carrier, CarrierState, UnitRecord
from mux_core.specs import ModelSource, PoolKey, Scheme
from mux_core.status import LlmStatus, StatusReport
from mux_core.units import ModelName, NodeName, UnitId
from mux_core.unitspec import Device, UnitSpec
from mux_operator.local import trees as trees_module
from mux_operator.local.datadir import DataDir
from mux_operator.local.door import LocalCluster
from mux_operator.local.objects import Objects
from mux_operator.local.progress import Progress
from mux_operator.local.trees import Trees

KEY = PoolKey(namespace="default", name="default")
UNIT = UnitId("default-r1-u0")
LLM = """apiVersion: muxserve.io/v1alpha1
kind: LLMDeployment
metadata: {name: one}
spec: {model: {uri: "file:///nowhere/at/all"}}
"""


def record(incarnation: int = 1) -> UnitRecord:
    spec = UnitSpec(unit=UNIT, pool="default", namespace="default", generation=1,
                    incarnation=incarnation, device=Device.CPU, gpus=1,
                    memory_bytes=1 << 20)  # fmt: skip
    return UnitRecord(unit=UNIT, group=GpuGroup(node=NodeName("here"), gpus=(0,)), spec=spec)


class Here:
    """A door on a claimed data directory; `now` is its clock."""

    def __init__(self, folder: Path) -> None:
        manifest = folder / "one.yaml"
        manifest.write_text(LLM)
        self.now = 100.0
        self.objects = Objects(clock=lambda: self.now)
        self.objects.update(changed=[manifest])
        self.data = DataDir(folder / "data")
        self.data.claim()
        self.trees = Trees(self.data, lambda: self.now)
        progress = Progress(clock=lambda: self.now, err=io.StringIO(), out=io.StringIO())
        self.door = LocalCluster(data=self.data, objects=self.objects, trees=self.trees,
                                 listener=progress, url="http://127.0.0.1:1")  # fmt: skip
        self.marked: list[PoolKey] = []
        self.door.on_change(self.marked.append)

    async def start(self, incarnation: int = 1) -> None:
        wanted = record(incarnation)
        await self.door.apply(KEY, WriteUnit(record=wanted, why=Why.PLACED))
        await self.door.apply(KEY, StartUnit(record=wanted, claims=frozenset(),
                                             why=Why.UNIT_MISSING))  # fmt: skip

    async def carriers(self) -> tuple[Carrier, ...]:
        return (await self.door.observe(KEY)).carriers

    async def until_it_runs(self) -> None:
        for _ in range(400):
            if "up" in self.trees.by_unit[UNIT].child.log_tail():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it never ran")

    async def until_state(self, state: CarrierState | None) -> tuple[Carrier, ...]:
        """Polls as the server does until the carrier is so, or (None) gone."""
        for _ in range(400):
            self.door.mark(self.trees.poll())
            carriers = await self.carriers()
            if (carriers[0].state if carriers else None) is state:
                return carriers
            await asyncio.sleep(0.02)
        raise AssertionError(f"never {state}: {carriers}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    code = "import time; print('up', flush=True); time.sleep(600)"
    monkeypatch.setattr(trees_module, "unit_command", lambda **_: [sys.executable, "-c", code])
    made = Here(tmp_path)
    yield made
    made.trees.kill_all()
    made.data.release()


async def test_starting_twice_starts_once(here: Here) -> None:
    await here.start()
    (first,) = here.trees.supervisors()
    await here.start()
    assert here.trees.supervisors() == (first,)
    assert KEY in here.marked
    assert [c.state for c in await here.carriers()] == [CarrierState.RUNNING]


async def test_a_unit_that_dies_is_dead_with_its_last_words_until_the_next_one(here: Here) -> None:
    await here.start()
    await here.until_it_runs()
    here.marked.clear()
    here.trees.by_unit[UNIT].child.kill_group()
    (dead,) = await here.until_state(CarrierState.DEAD)
    assert dead.message == "default-r1-u0-1 ended with code -9: up"
    assert here.marked == [KEY]
    await here.start(incarnation=2)
    assert [c.incarnation for c in await here.carriers()] == [2]
    assert sorted(p.name for p in here.data.run.iterdir()) == [
        "default-r1-u0-2", "default-r1-u0-2.json",
    ]  # fmt: skip


async def test_stopping_is_asked_once_and_ends_without_a_trace(here: Here) -> None:
    await here.start()
    for _ in range(2):
        await here.door.apply(KEY, StopUnit(unit=UNIT, incarnation=1, why=Why.UNIT_EMPTY))
    assert [c.state for c in await here.carriers()] == [CarrierState.STOPPING]
    await here.until_state(None)
    await here.door.apply(KEY, ForgetUnit(unit=UNIT, why=Why.UNIT_EMPTY))
    assert (await here.door.observe(KEY)).units == ()
    assert list(here.data.run.iterdir()) == []


async def test_a_unit_that_does_not_end_in_its_time_is_killed(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(600)"]
    monkeypatch.setattr(trees_module, "unit_command", lambda **_: command)
    await here.start()
    await here.until_it_runs()
    await here.door.apply(KEY, StopUnit(unit=UNIT, incarnation=1, why=Why.UNIT_EMPTY))
    here.trees.poll()
    assert [c.state for c in await here.carriers()] == [CarrierState.STOPPING]
    here.now += trees_module.GRACE_S + 1
    await here.until_state(None)


async def test_stopping_another_incarnation_changes_nothing(here: Here) -> None:
    await here.start(incarnation=2)
    await here.door.apply(KEY, StopUnit(unit=UNIT, incarnation=1, why=Why.UNIT_DIED))
    assert [c.state for c in await here.carriers()] == [CarrierState.RUNNING]


async def test_labels_and_routes_are_in_the_next_observation(here: Here) -> None:
    await here.start()
    one = frozenset({ModelName("one")})
    label = LabelUnit(unit=UNIT, incarnation=1, serving=one, draining=frozenset(),
                      why=Why.SERVING_CHANGED)  # fmt: skip
    await here.door.apply(KEY, label)
    table = RouteTable(namespace="default", generation=4)
    await here.door.apply(KEY, PublishRoutes(table=table, why=Why.ROUTES_CHANGED))
    seen = await here.door.observe(KEY)
    assert seen.carriers[0].serving == one
    assert seen.routes == table
    assert '"generation":4' in here.data.routes.read_text()


async def test_a_reported_status_is_in_the_next_observation(here: Here) -> None:
    status = LlmStatus(observed_generation=1, served_name="one")
    await here.door.report(KEY, StatusReport(llms={ModelName("one"): status,
                                                   ModelName("gone"): status}))  # fmt: skip
    (model,) = (await here.door.observe(KEY)).llms
    assert model == replace(model, status=status)


async def test_a_folder_that_is_not_there_is_inspected_and_not_found(here: Here) -> None:
    source = ModelSource(scheme=Scheme.FILE, location="/nowhere/at/all")
    action = InspectModel(model=ModelName("one"), source=source, path=source.folder, uid="x",
                          why=Why.SOURCE_UNKNOWN)  # fmt: skip
    await here.door.apply(KEY, action)
    await here.door.apply(KEY, action)
    for _ in range(500):
        (run,) = (await here.door.observe(KEY)).inspections
        if run.result is not None:
            break
        await asyncio.sleep(0.02)
    assert run.result is not None
    assert run.result.error_reason == "NotFound"
    assert "/nowhere/at/all" in run.result.message
    await here.door.close()
    assert (await here.door.observe(KEY)).inspections == ()
