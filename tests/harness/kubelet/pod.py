"""One pod on this node: from its binding to its end."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from harness import names
from harness.api import STRATEGIC_MERGE, Api, ApiError, Object
from harness.kubelet import environment
from harness.kubelet.clock import now
from harness.kubelet.container import Container, Policy, Surroundings
from harness.kubelet.inputs import NotYetError, PodInputs
from harness.kubelet.process import Plan
from harness.kubelet.sandbox import Bind
from harness.kubelet.settings import KubeletSettings
from harness.kubelet.status import PodView, pod_status
from harness.kubelet.volumes import Volumes

_SOURCE_WAIT = 0.2
_TOKEN_CHECK = 30.0


class Pod:
    """Runs a pod's containers and reports its status until it is stopped."""

    def __init__(
        self,
        api: Api,
        settings: KubeletSettings,
        inputs: PodInputs,
        devices: dict[str, list[str]],
    ) -> None:
        self.inputs = inputs
        self.devices = devices
        self.is_stopping = False
        self._api = api
        self._settings = settings
        self._folder = settings.pods_folder / self.uid
        self._folder.mkdir(parents=True, exist_ok=True)
        self._volumes = Volumes(inputs, self._folder / "mounts")
        self._phase = "Pending"
        self._started_at = self._object["status"].get("startTime") or now()
        self._is_prepared = False
        self._conditions: list[Object] = []
        self._dirty = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._init, self._sidecars, self._main = self._make_containers()
        self._restore_counts()

    @property
    def uid(self) -> str:
        uid: str = self._object["metadata"]["uid"]
        return uid

    @property
    def full_name(self) -> tuple[str, str]:
        return (self.inputs.namespace, self._object["metadata"]["name"])

    @property
    def containers(self) -> list[Container]:
        return [*self._init, *self._sidecars, *self._main]

    def start(self) -> None:
        for work in (self._run(), self._report_changes(), self._follow_sources()):
            self._spawn(work)

    def update(self, pod: Object) -> None:
        """The pod's object changed (labels, annotations, deletion)."""
        self.inputs.pod = pod
        self.inputs.changed.set()

    async def stop(self, grace: float) -> None:
        """End all containers, the main ones first, then sidecars in reverse order."""
        self.is_stopping = True
        self._dirty.set()
        began = time.monotonic()
        await asyncio.gather(*(c.stop(grace) for c in [*self._init, *self._main]))
        for sidecar in reversed(self._sidecars):
            left = max(grace - (time.monotonic() - began), min(grace, 0.1))
            await sidecar.stop(left)
        await self._report_end()

    def kill(self) -> None:
        """End the grace period of a running stop."""
        for container in self.containers:
            container.kill()

    async def remove(self) -> None:
        """Give back everything; the pod must be stopped."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.inputs.forget()
        self._volumes.remove()

    @property
    def _object(self) -> Object:
        return self.inputs.pod

    @property
    def _path(self) -> str:
        namespace, name = self.full_name
        return f"/api/v1/namespaces/{namespace}/pods/{name}"

    def _make_containers(self) -> tuple[list[Container], list[Container], list[Container]]:
        spec = self._object["spec"]
        policy: Policy = spec.get("restartPolicy", "Always")
        init_policy: Policy = "Never" if policy == "Never" else "OnFailure"
        first = spec.get("initContainers") or []
        around = self._surroundings()
        init = [Container(c, init_policy, around) for c in first if "restartPolicy" not in c]
        sidecars = [Container(c, "Always", around) for c in first if "restartPolicy" in c]
        return init, sidecars, [Container(c, policy, around) for c in spec["containers"]]

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            node=self._settings.node,
            address=self.inputs.address,
            folder=self._folder,
            liveness_grace=float(self._object["spec"].get("terminationGracePeriodSeconds", 30)),
            log=self.log,
            make_plan=self._make_plan,
            report=self._dirty.set,
            event=self._event,
        )

    def _restore_counts(self) -> None:
        """A node that comes back finds pods it ran before: their containers start once more."""
        status = self._object["status"]
        known = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        for container in self.containers:
            for old in known:
                if old["name"] == container.name and "running" in (old.get("state") or {}):
                    container.state.restarts = old["restartCount"] + 1

    def log(self, container: str, restart: int) -> Path:
        namespace, name = self.full_name
        folder = self._settings.logs_folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{namespace}_{name}_{self.uid[:8]}_{container}.{restart}.log"

    async def _run(self) -> None:
        await self._prepare()
        self._is_prepared = True
        for container in self._ordered_first():
            if container in self._sidecars:
                self._spawn(self._run_sidecar(container))
                await container.up.wait()
            elif await container.run() != 0:
                self._finish("Failed")
                return
        self._phase = "Running"
        codes = await asyncio.gather(*(container.run() for container in self._main))
        if self.is_stopping:
            return  # `stop` ends the sidecars and says how it all ended
        for sidecar in reversed(self._sidecars):
            await sidecar.stop(1.0)
        self._finish("Failed" if any(codes) else "Succeeded")

    def _ordered_first(self) -> list[Container]:
        """Init containers and sidecars in the order the pod lists them."""
        by_name = {container.name: container for container in [*self._init, *self._sidecars]}
        return [by_name[c["name"]] for c in self._object["spec"].get("initContainers") or []]

    async def _run_sidecar(self, sidecar: Container) -> None:
        await sidecar.run()

    async def _prepare(self) -> None:
        said = ""
        while True:
            try:
                return await self._volumes.prepare()
            except NotYetError as error:
                if str(error) != said:
                    said = str(error)
                    self._event("Warning", "FailedMount", said)
                await asyncio.sleep(_SOURCE_WAIT)

    async def _make_plan(self, container: Object) -> Plan:
        folder = self._folder / "home" / container["name"]
        folder.mkdir(parents=True, exist_ok=True)
        message = self._folder / f"{container['name']}.message"
        message.write_text("")
        _, name = self.full_name
        base = environment.base_environment(self._settings, name, str(folder))
        base["NVIDIA_VISIBLE_DEVICES"] = ",".join(self.devices.get(container["name"], ["void"]))
        values = await environment.environment(self.inputs, container, base)
        argv = environment.command(container, values, self._settings.node.entrypoints)
        message_path = container.get("terminationMessagePath", "/dev/termination-log")
        return Plan(
            argv=argv,
            environment=values,
            folder=container.get("workingDir") or str(folder),
            binds=[
                Bind(str(self._write_resolv_conf()), "/etc/resolv.conf"),
                Bind(str(message), message_path),
                *self._volumes.binds(container),
            ],
            shared_memory=str(self._volumes.shared_memory),
        )

    def _write_resolv_conf(self) -> Path:
        path = self._folder / "resolv.conf"
        path.write_text(names.resolv_conf(self._settings.dns_server, self.inputs.namespace))
        return path

    async def _follow_sources(self) -> None:
        while True:
            # Besides changes: a ServiceAccount token ages.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.inputs.changed.wait(), _TOKEN_CHECK)
            self.inputs.changed.clear()
            if self._is_prepared:
                await self._volumes.refresh()

    def _finish(self, phase: str) -> None:
        self._phase = phase
        self._dirty.set()

    async def _report_changes(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._report()

    async def _report(self) -> None:
        view = PodView(
            phase=self._phase,
            address=self.inputs.address,
            node_address=self._settings.node.address,
            started_at=self._started_at,
            generation=self._object["metadata"].get("generation", 1),
            is_prepared=self._is_prepared,
            is_stopping=self.is_stopping,
            init=self._init,
            sidecars=self._sidecars,
            main=self._main,
        )
        status = pod_status(view, self._conditions, now())
        self._conditions = status["conditions"]
        body = {"metadata": {"uid": self.uid}, "status": status}
        # 404 and 409: the pod is gone or another one has its name.
        with contextlib.suppress(ApiError):
            await self._api.request("PATCH", f"{self._path}/status", body, kind=STRATEGIC_MERGE)

    async def _report_end(self) -> None:
        for container in self.containers:
            if "running" not in container.state.state and "terminated" not in container.state.state:
                container.state.state = {
                    "terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}
                }
        if self._phase in ("Pending", "Running"):
            failed = any(c.exit_code for c in self._main) or not self._is_prepared
            self._phase = "Failed" if failed else "Succeeded"
        await self._report()

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._spawn(self._send_event(kind, reason, message))

    async def _send_event(self, kind: str, reason: str, message: str) -> None:
        namespace, name = self.full_name
        body: Object = {
            "metadata": {"generateName": f"{name}.", "namespace": namespace},
            "type": kind,
            "reason": reason,
            "message": message[:1000],
            "count": 1,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "source": {"component": "process-kubelet", "host": self._settings.node.name},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": namespace,
                "name": name,
                "uid": self.uid,
            },
        }
        # A namespace that is going away refuses new events.
        with contextlib.suppress(ApiError):
            await self._api.request("POST", f"/api/v1/namespaces/{namespace}/events", body)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
