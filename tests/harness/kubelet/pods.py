"""All pods bound to this node: follows the API and gives each an address and its devices."""

import asyncio
import contextlib
import shutil
from collections.abc import Coroutine
from typing import Any

from harness.api import Api, ApiError, Listed, Object
from harness.kubelet.inputs import PodInputs
from harness.kubelet.pod import Pod
from harness.kubelet.settings import KubeletSettings
from harness.kubelet.sources import Sources

_GPU = "nvidia.com/gpu"
_OVER = ("Succeeded", "Failed")


class Pods:
    """Owns every pod of the node, and the pool of addresses and GPUs they draw from."""

    def __init__(self, api: Api, settings: KubeletSettings) -> None:
        self._api = api
        self._settings = settings
        self._sources = Sources(api)
        self._pods: dict[str, Pod] = {}
        self._addresses = list(settings.node.pod_addresses)
        node = settings.node
        self._gpus = [f"GPU-{node.name}-{number}" for number in range(node.gpus)]
        self._removed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def follow(self) -> None:
        """Act on the API's pods for ever."""
        selector = f"spec.nodeName={self._settings.node.name}"
        async for event in self._api.follow("/api/v1/pods", selector):
            if isinstance(event, Listed):
                self._forget_unknown({item["metadata"]["uid"] for item in event.items})
                for item in event.items:
                    self._see(item)
            elif event.is_deleted:
                self._vanished(event.object["metadata"]["uid"])
            else:
                self._see(event.object)

    def find(self, namespace: str, name: str) -> Pod | None:
        matching = (pod for pod in self._pods.values() if pod.full_name == (namespace, name))
        return next(matching, None)

    async def stop(self) -> None:
        """The node goes down: all processes end, the API's pods stay."""
        pods = list(self._pods.values())
        for pod in pods:
            pod.kill()
        await asyncio.gather(*(pod.remove() for pod in pods))

    def _see(self, item: Object) -> None:
        uid = item["metadata"]["uid"]
        is_deleted = "deletionTimestamp" in item["metadata"]
        pod = self._pods.get(uid)
        if uid in self._removed:
            return
        if pod is None:
            if is_deleted:
                self._spawn(self._confirm(item))
            elif item["status"].get("phase") not in _OVER:
                self._adopt(item)
            return
        pod.update(item)
        if is_deleted:
            self._begin_stop(pod, item)

    def _begin_stop(self, pod: Pod, item: Object) -> None:
        grace = float(item["metadata"].get("deletionGracePeriodSeconds") or 0)
        if not pod.is_stopping:
            self._spawn(self._stop(pod, grace))
        elif grace <= 1:  # deleted again, by force
            pod.kill()

    def _vanished(self, uid: str) -> None:
        pod = self._pods.get(uid)
        if pod is None:
            return
        if pod.is_stopping:
            pod.kill()
        else:
            self._spawn(self._stop(pod, 0))

    def _forget_unknown(self, uids: set[str]) -> None:
        for uid in self._pods.keys() - uids:
            self._vanished(uid)
        folder = self._settings.pods_folder
        for left in folder.iterdir() if folder.exists() else ():
            if left.name not in uids and left.name not in self._pods:
                shutil.rmtree(left, ignore_errors=True)

    def _adopt(self, item: Object) -> None:
        address = self._take_address(item["status"].get("podIP"))
        inputs = PodInputs(self._api, self._sources, self._settings.node, pod=item, address=address)
        devices = {c["name"]: self._take_gpus(c) for c in item["spec"]["containers"]}
        devices = {name: taken for name, taken in devices.items() if taken}
        pod = Pod(self._api, self._settings, inputs, devices)
        self._pods[pod.uid] = pod
        pod.start()

    def _take_address(self, known: str | None) -> str:
        # A pod keeps its address for life, also past a restart of its node's process.
        address = known if known in self._addresses else self._addresses[0]
        self._addresses.remove(address)
        return address

    def _take_gpus(self, container: Object) -> list[str]:
        limits = (container.get("resources") or {}).get("limits") or {}
        number = int(limits.get(_GPU, 0))
        taken, self._gpus = self._gpus[:number], self._gpus[number:]
        return taken

    async def _stop(self, pod: Pod, grace: float) -> None:
        await pod.stop(grace)
        with contextlib.suppress(ApiError):
            await self._delete(*pod.full_name, pod.uid)
        await pod.remove()
        # The watch may still tell of it; its address is used last, in case a peer remembers it.
        self._removed.add(pod.uid)
        del self._pods[pod.uid]
        self._addresses.append(pod.inputs.address)
        self._gpus = sorted([*self._gpus, *(gpu for held in pod.devices.values() for gpu in held)])

    async def _confirm(self, item: Object) -> None:
        metadata = item["metadata"]
        with contextlib.suppress(ApiError):
            await self._delete(metadata["namespace"], metadata["name"], metadata["uid"])

    async def _delete(self, namespace: str, name: str, uid: str) -> None:
        body: Object = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        await self._api.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", body)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
