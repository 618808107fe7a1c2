"""The cluster door on this machine: objects from files, units as process trees.

Observes its own memory, acts on processes and files. What it must remember across `observe`
calls (records, statuses, routes) lives as long as the server: nothing outlives it.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, assert_never

from mux_core.actions import (
    ClusterAction,
    EndInspection,
    EnsureService,
    ForgetUnit,
    InspectModel,
    LabelUnit,
    PublishRoutes,
    RecordPlan,
    StartUnit,
    StopUnit,
    WriteUnit,
)
from mux_core.routes import RouteTable
from mux_core.routes import to_json as routes_json
from mux_core.snapshot import Inspection, LlmObject, Observation, PlanRecord, UnitRecord
from mux_core.specs import PoolKey
from mux_core.status import LlmStatus, PoolStatus, StatusReport
from mux_core.units import ModelName, UnitId
from mux_operator import names
from mux_operator.local.datadir import DataDir, write_json
from mux_operator.local.inspecting import inspect
from mux_operator.local.objects import Objects, inventory
from mux_operator.local.trees import Trees
from mux_operator.status_documents import plan_manifest, plan_status

Mark = Callable[[PoolKey], None]


class Listener(Protocol):
    """Hears of statuses as they change; for people."""

    def told(self, name: ModelName, before: LlmStatus | None, after: LlmStatus) -> None: ...

    def told_pool(self, key: PoolKey, before: PoolStatus | None, after: PoolStatus) -> None: ...


class LocalCluster:
    """Implements `mux_operator.door.Cluster`; used from one event loop."""

    def __init__(
        self, *, data: DataDir, objects: Objects, trees: Trees, listener: Listener, url: str
    ) -> None:
        self._data, self._objects, self._trees = data, objects, trees
        self._listener, self._url = listener, url
        self._marks: list[Mark] = []
        self._statuses: dict[str, LlmStatus] = {}
        self._pool_statuses: dict[PoolKey, PoolStatus] = {}
        self._records: dict[PoolKey, dict[UnitId, UnitRecord]] = {}
        self._inspections: dict[ModelName, Inspection] = {}
        self._runs: dict[ModelName, asyncio.Task[None]] = {}
        self._routes: RouteTable | None = None
        self._plans: dict[PoolKey, tuple[PlanRecord, ...]] = {}

    def pools(self) -> tuple[PoolKey, ...]:
        holding = {key for key, records in self._records.items() if records}
        return tuple(sorted({*self._objects.pools(), *holding}))

    async def observe(self, key: PoolKey) -> Observation:
        pool = self._objects.pool(key)
        if pool is not None:
            pool = replace(pool, status=self._pool_statuses.get(key, PoolStatus()))
        gateway = self._trees.gateway
        return Observation(
            now=self._objects.clock(), key=key, pool=pool, llms=self.llms(key.namespace),
            nodes=() if pool is None else inventory(pool.spec),
            units=tuple(r for _, r in sorted(self._records.get(key, {}).items())),
            carriers=self._trees.carriers(key),
            inspections=tuple(i for _, i in sorted(self._inspections.items())),
            gateways=() if gateway is None else (gateway.address,),
            routes=self._routes, plans=self._plans.get(key, ()), url=self._url,
        )  # fmt: skip

    def llms(self, namespace: str) -> tuple[LlmObject, ...]:
        """The models wanted now, with the status they were last given."""
        return tuple(replace(o, status=self._statuses.get(o.uid, LlmStatus()))
                     for o in self._objects.llms(namespace))  # fmt: skip

    async def apply(self, key: PoolKey, action: ClusterAction) -> None:
        match action:
            case InspectModel():
                self._inspect(key, action)
            case EndInspection():
                self._end_inspection(action.model)
            case WriteUnit():
                self._records.setdefault(key, {})[action.record.unit] = action.record
            case StartUnit():
                self._trees.start_unit(key, action.record)
            case StopUnit():
                self._trees.stop_unit(action.unit, action.incarnation)
            case ForgetUnit():
                self._trees.discard(action.unit)
                self._records.get(key, {}).pop(action.unit, None)
            case LabelUnit():
                self._trees.label(action.unit, action.incarnation, serving=action.serving,
                                  draining=action.draining)  # fmt: skip
            case EnsureService():
                pass  # a model's own address is the gateway's, by its name
            case PublishRoutes():
                self._routes = action.table
                write_json(self._data.routes, routes_json(action.table))
            case RecordPlan():
                self._record_plan(key, action)
            case _:
                assert_never(action)
        if not isinstance(action, PublishRoutes | EnsureService):
            self.mark((key,))

    async def report(self, key: PoolKey, report: StatusReport) -> None:
        objects = {o.name: o for o in self._objects.llms(key.namespace)}
        for name, status in sorted(report.llms.items()):
            if name not in objects:
                continue
            before = self._statuses.get(objects[name].uid)
            self._statuses[objects[name].uid] = status
            if before != status:
                self._listener.told(name, before, status)
        if report.pool is not None and report.pool != self._pool_statuses.get(key):
            self._listener.told_pool(key, self._pool_statuses.get(key), report.pool)
            self._pool_statuses[key] = report.pool

    def on_change(self, mark: Mark) -> None:
        self._marks.append(mark)

    def mark(self, keys: Iterable[PoolKey] | None = None) -> None:
        """Tells the reconcile loop to look again at `keys`, or at every pool."""
        for key in self.pools() if keys is None else keys:
            for mark in self._marks:
                mark(key)

    async def close(self) -> None:
        """Ends inspections that still run."""
        for name in list(self._runs):
            self._end_inspection(name)
        await asyncio.sleep(0)

    def _inspect(self, key: PoolKey, action: InspectModel) -> None:
        wanted = self._inspections.get(action.model)
        if wanted is not None and wanted.source == action.source.key:
            return
        self._end_inspection(action.model)
        self._inspections[action.model] = Inspection(model=action.model, source=action.source.key)
        self._runs[action.model] = asyncio.create_task(
            self._run_inspection(key, action), name=f"inspect {action.model}"
        )

    async def _run_inspection(self, key: PoolKey, action: InspectModel) -> None:
        result = await inspect(action.path, source=action.source.key)
        self._inspections[action.model] = Inspection(
            model=action.model, source=action.source.key, result=result
        )
        self.mark((key,))

    def _end_inspection(self, model: ModelName) -> None:
        self._inspections.pop(model, None)
        run = self._runs.pop(model, None)
        if run is not None:
            run.cancel()

    def _record_plan(self, key: PoolKey, action: RecordPlan) -> None:
        record = PlanRecord(revision=action.revision, inputs_hash=action.inputs_hash,
                            name=action.name, waits=action.waits)  # fmt: skip
        kept = [replace(p, waits=p.waits and p.name not in action.superseded)
                for p in self._plans.get(key, ())
                if p.name not in {*action.expired, action.name}]  # fmt: skip
        self._plans[key] = (*kept, record)
        document = plan_manifest(action, namespace=key.namespace, pool=key.name, pool_uid="")
        self._write_plan(action.name, {**document, "status": plan_status(action)})
        for name in action.superseded:
            known = json.loads(self._plan_file(name).read_text())
            known["status"]["phase"] = names.PLAN_SUPERSEDED
            self._write_plan(name, known)
        for name in action.expired:
            self._plan_file(name).unlink(missing_ok=True)

    def _plan_file(self, name: str) -> Path:
        return self._data.plans / f"{name}.json"

    def _write_plan(self, name: str, document: dict[str, Any]) -> None:
        write_json(self._plan_file(name), document)
