"""The API server's door: requests, and the cluster door made of them.

Nothing else imports `kubernetes`. Objects are plain dictionaries. Writes are server-side apply
with one field manager, except pods and new objects, which are created: an object of that name that
is not ours makes the creation fail, and is left alone.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol, assert_never

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

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
from mux_core.errors import PeerError, SpecError
from mux_core.snapshot import Observation
from mux_core.specs import PodTemplate, PoolKey, PoolSpec
from mux_core.status import StatusReport
from mux_operator import manifests, names, observing
from mux_operator.metrics import Metrics
from mux_operator.observing import Object
from mux_operator.schema import GROUP, VERSION
from mux_operator.status_documents import llm_status, plan_manifest, plan_status, pool_status

log = logging.getLogger(__name__)

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
REQUEST_S: Final = 15.0

_PREFIX: Final = {
    "pods": "/api/v1", "configmaps": "/api/v1", "services": "/api/v1", "nodes": "/api/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "llmdeployments": f"/apis/{GROUP}/{VERSION}", "gpupools": f"/apis/{GROUP}/{VERSION}",
    "placementplans": f"/apis/{GROUP}/{VERSION}",
}  # fmt: skip


class NotThere(PeerError):
    """The object does not exist (404)."""


class Conflict(PeerError):
    """It exists already, or changed meanwhile (409)."""


class Api:
    """One connection to the API server; errors as ours."""

    def __init__(self, api_client: Any, metrics: Metrics) -> None:
        self._client = api_client
        self._metrics = metrics

    @classmethod
    async def connect(cls, metrics: Metrics) -> "Api":
        """In a pod by its service account, elsewhere by KUBECONFIG."""
        configuration = client.Configuration()
        loader: Any = config
        try:
            loader.load_incluster_config(configuration)
        except config.ConfigException:
            await loader.load_kube_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration), metrics)

    async def close(self) -> None:
        await self._client.close()

    async def get(self, kind: str, namespace: str, name: str) -> Object:
        return await self._call("GET", kind, namespace, name)

    async def create(self, kind: str, namespace: str, body: Object) -> Object:
        query = {"fieldManager": names.MANAGER}
        return await self._call("POST", kind, namespace, "", body=body, query=query)

    async def apply(self, kind: str, body: Object, *, subresource: str = "") -> Object:
        """Server-side apply: makes the fields that `body` names what it says."""
        metadata = body["metadata"]
        query = {"fieldManager": names.MANAGER, "force": "true"}
        return await self._call("PATCH", kind, metadata["namespace"], metadata["name"], body=body,
                                query=query, content=APPLY, subresource=subresource)  # fmt: skip

    async def merge(self, kind: str, namespace: str, name: str, body: Object) -> Object:
        query = {"fieldManager": names.MANAGER}
        return await self._call("PATCH", kind, namespace, name, body=body, query=query,
                                content=MERGE)  # fmt: skip

    async def replace(self, kind: str, body: Object) -> Object:
        metadata = body["metadata"]
        return await self._call("PUT", kind, metadata["namespace"], metadata["name"], body=body)

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """Gone already is fine."""
        try:
            await self._call("DELETE", kind, namespace, name)
        except NotThere:
            return

    async def _call(
        self, verb: str, kind: str, namespace: str, name: str, *, body: Object | None = None,
        query: Mapping[str, str] | None = None, content: str = "application/json",
        subresource: str = "",
    ) -> Object:  # fmt: skip
        path = f"{_PREFIX[kind]}/namespaces/{namespace}/{kind}"
        path += "".join(f"/{part}" for part in (name, subresource) if part)
        headers = {"Accept": "application/json", "Content-Type": content}
        try:
            method, url, headers, data, _ = await self._client.param_serialize(
                verb, path, query_params=list((query or {}).items()), header_params=headers,
                body=body, auth_settings=["BearerToken"])  # fmt: skip
            response: Any = await self._client.call_api(method, url, headers, data,
                                                   _request_timeout=REQUEST_S)  # fmt: skip
            raw = await response.read()
        except ApiException as error:
            self._count(verb, kind, error.status)
            raise _ours(verb, path, error) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._count(verb, kind, 0)
            raise PeerError(f"API server: {verb} {path}: {error or type(error).__name__}; is it "
                            "up?") from error  # fmt: skip
        self._count(verb, kind, response.status)
        if response.status >= 300:
            raise _ours(verb, path, ApiException(status=response.status, reason=response.reason,
                                                 body=raw.decode(errors="replace")))  # fmt: skip
        found: Object = json.loads(raw)
        return found

    def _count(self, verb: str, kind: str, status: int | None) -> None:
        code = f"{status // 100}xx" if status else "lost"
        self._metrics.api_requests.labels(verb, kind, code).inc()


class Store(Protocol):
    """The watched objects as they are now: kind to objects, plain dictionaries."""

    def all(self, kind: str, namespace: str) -> Iterable[Object]: ...

    def one(self, kind: str, namespace: str, name: str) -> Object | None: ...

    def namespaced(self, kind: str) -> Iterable[Object]: ...


class KubeCluster:
    """Implements `mux_operator.door.Cluster` from watched objects and API requests.

    `image` is that of unit and inspect pods unless the pool names one; `url` of the gateway, with
    `{namespace}` for the namespace.
    """

    def __init__(
        self, *, api: Api, store: Store, image: str, url: str, clock: Callable[[], float]
    ) -> None:
        self._api, self._store = api, store
        self._image, self._url = image, url
        self._clock = clock
        self._marks: list[Callable[[PoolKey], None]] = []

    def pools(self) -> tuple[PoolKey, ...]:
        keys = {_key(item, item["metadata"]["name"]) for item in self._store.namespaced("gpupools")}
        keys |= {_key(item, observing.pool_named(item))
                 for item in self._store.namespaced("llmdeployments")}  # fmt: skip
        for kind in ("configmaps", "pods"):
            for item in self._store.namespaced(kind):
                pool = observing.labels(item).get(names.POOL)
                keys |= {_key(item, pool)} if pool else set()
        return tuple(sorted(keys))

    async def observe(self, key: PoolKey) -> Observation:
        found = self._store.one("gpupools", key.namespace, key.name)
        gone = found is None or found["metadata"].get("deletionTimestamp")
        pool = None if found is None or gone else observing.pool_object(key, found)
        llms = (observing.llm_object(item) for item in self._all("llmdeployments", key)
                if not item["metadata"].get("deletionTimestamp"))  # fmt: skip
        pods = self._all("pods", key)
        ours = [p for p in pods if observing.labels(p).get(names.POOL) == key.name]
        maps = self._all("configmaps", key)
        records = (observing.unit_record(item) for item in maps
                   if observing.labels(item).get(names.POOL) == key.name)  # fmt: skip
        gateways = (observing.gateway_address(p) for p in pods if _component(p) == "gateway")
        plans = (observing.plan_record(item) for item in self._all("placementplans", key)
                 if observing.labels(item).get(names.POOL) == key.name)  # fmt: skip
        services = (observing.service(item) for item in self._all("services", key))
        nodes, now = tuple(self._store.all("nodes", "")), self._clock()
        return Observation(
            now=now, key=key, pool=pool, lost=observing.lost_nodes(nodes),
            llms=tuple(sorted(llms, key=lambda item: item.name)),
            nodes=() if pool is None else observing.inventory(pool.spec, nodes, now=now),
            units=tuple(sorted((r for r in records if r), key=lambda r: r.unit)),
            carriers=tuple(sorted(map(observing.carrier, ours), key=lambda c: c.name)),
            inspections=tuple(sorted((observing.inspection(p) for p in pods
                                      if _component(p) == "inspect"), key=lambda i: i.model)),
            gateways=tuple(sorted(g for g in gateways if g is not None)),
            routes=observing.route_table(
                self._store.one("configmaps", key.namespace, names.ROUTES)),
            plans=tuple(p for p in plans if p is not None),
            services=frozenset(s for s in services if s is not None),
            first_port=names.FIRST_MODEL_PORT,
            url=self._url.format(namespace=key.namespace),
        )  # fmt: skip

    async def apply(self, key: PoolKey, action: ClusterAction) -> None:
        space = key.namespace
        match action:
            case InspectModel():
                await self._inspect(key, action)
            case EndInspection():
                await self._api.delete("pods", space, names.fetch_name(action.model))
            case WriteUnit():
                body = manifests.unit_config_map(action.record, namespace=space,
                                                 pool_uid=self._pool_uid(key))  # fmt: skip
                await self._put("configmaps", body, owner=self._pool_uid(key))
            case StartUnit():
                await self._start(key, action)
            case StopUnit():
                name = names.pod_name(action.unit, action.incarnation)
                await self._api.delete("pods", space, name)
            case ForgetUnit():
                await self._api.delete("configmaps", space, action.unit)
            case LabelUnit():
                await self._label(space, action)
            case EnsureService():
                body = manifests.model_service(action.model, action.port, namespace=space,
                                               uid=action.uid)  # fmt: skip
                await self._put("services", body, owner=action.uid)
            case PublishRoutes():
                await self._publish(key, action)
            case RecordPlan():
                await self._record_plan(key, action)
            case _:
                assert_never(action)

    async def report(self, key: PoolKey, report: StatusReport) -> None:
        for model, status in sorted(report.llms.items()):
            await self._status("llmdeployments", key.namespace, model, llm_status(model, status))
        if report.pool is not None:
            await self._status("gpupools", key.namespace, key.name, pool_status(report.pool))

    def on_change(self, mark: Callable[[PoolKey], None]) -> None:
        self._marks.append(mark)

    def changed(self, namespace: str, pool: str | None) -> None:
        """Something of a pool changed, or (None) something every pool of the namespace sees."""
        keys = [key for key in self.pools() if key.namespace == namespace or not namespace]
        if pool is not None:
            keys = [PoolKey(namespace=namespace, name=pool)]
        for key in keys:
            for mark in self._marks:
                mark(key)

    def _all(self, kind: str, key: PoolKey) -> list[Object]:
        return list(self._store.all(kind, key.namespace))

    def _pool(self, key: PoolKey) -> tuple[str, PoolSpec]:
        found = self._store.one("gpupools", key.namespace, key.name)
        if found is None:
            raise PeerError(f"GPUPool {key}: gone while its plan was carried out")
        pool = observing.pool_object(key, found)
        return pool.uid, pool.spec

    def _pool_uid(self, key: PoolKey) -> str:
        return self._pool(key)[0]

    async def _inspect(self, key: PoolKey, action: InspectModel) -> None:
        pool = self._store.one("gpupools", key.namespace, key.name)
        pod = self._pool(key)[1].pod if pool is not None else PodTemplate()
        body = manifests.inspect_pod(action, pod, namespace=key.namespace,
                                     image=pod.image or self._image)  # fmt: skip
        await self._create("pods", body, owner=action.uid)

    async def _start(self, key: PoolKey, action: StartUnit) -> None:
        uid, spec = self._pool(key)
        body = manifests.unit_pod(
            action.record, spec, claims=action.claims, namespace=key.namespace, pool_uid=uid,
            image=self._image)  # fmt: skip
        await self._create("pods", body, owner=uid)

    async def _label(self, namespace: str, action: LabelUnit) -> None:
        name = names.pod_name(action.unit, action.incarnation)
        pod = self._store.one("pods", namespace, name)
        wanted = manifests.unit_labels(action.serving, action.draining)
        had = {k for k in observing.labels(pod) if k.startswith(names.SERVES)} if pod else set()
        marks = {**dict.fromkeys(had - set(wanted)), **wanted}
        try:
            await self._api.merge("pods", namespace, name, {"metadata": {"labels": marks}})
        except NotThere:
            return

    async def _publish(self, key: PoolKey, action: PublishRoutes) -> None:
        known = observing.route_table(self._store.one("configmaps", key.namespace, names.ROUTES))
        if known != action.table:
            await self._api.apply("configmaps", manifests.routes_config_map(action.table))

    async def _record_plan(self, key: PoolKey, action: RecordPlan) -> None:
        uid, space = self._pool_uid(key), key.namespace
        body = plan_manifest(action, namespace=space, pool=key.name, pool_uid=uid)
        await self._create("placementplans", body, owner=uid)
        await self._status("placementplans", space, action.name, plan_status(action))
        for name in action.superseded:
            known = self._store.one("placementplans", space, name)
            if known is not None:
                status = {**known.get("status", {}), "phase": names.PLAN_SUPERSEDED}
                await self._status("placementplans", space, name, status)
        for name in action.expired:
            await self._api.delete("placementplans", space, name)

    async def _create(self, kind: str, body: Object, *, owner: str) -> None:
        """Creates it; one of ours that is there already is what we wanted."""
        metadata = body["metadata"]
        try:
            await self._api.create(kind, metadata["namespace"], body)
        except Conflict:
            await self._must_be_ours(kind, metadata["namespace"], metadata["name"], owner)

    async def _put(self, kind: str, body: Object, *, owner: str) -> None:
        """Creates it, or brings one of ours to what `body` says."""
        metadata = body["metadata"]
        try:
            await self._api.create(kind, metadata["namespace"], body)
        except Conflict:
            await self._must_be_ours(kind, metadata["namespace"], metadata["name"], owner)
            await self._api.apply(kind, body)

    async def _must_be_ours(self, kind: str, namespace: str, name: str, owner: str) -> None:
        found = await self._api.get(kind, namespace, name)
        if not observing.owned_by(found, owner):
            raise SpecError(f"{kind} {namespace}/{name} exists and is not ours; delete or rename "
                            "it")  # fmt: skip

    async def _status(self, kind: str, namespace: str, name: str, status: dict[str, Any]) -> None:
        """Writes a status that differs from the one we see; a deleted object needs none."""
        known = self._store.one(kind, namespace, name)
        if known is not None and (known.get("status") or {}) == status:
            return
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": _KIND[kind],
                "metadata": {"name": name, "namespace": namespace}, "status": status}  # fmt: skip
        try:
            await self._api.apply(kind, body, subresource="status")
        except NotThere:
            return


_KIND: Final = {"llmdeployments": "LLMDeployment", "gpupools": "GPUPool",
                "placementplans": "PlacementPlan"}  # fmt: skip


def _key(item: Object, pool: str) -> PoolKey:
    return PoolKey(namespace=item["metadata"]["namespace"], name=pool)


def _component(item: Object) -> str:
    return observing.labels(item).get(names.COMPONENT, "")


def _ours(verb: str, path: str, error: ApiException) -> PeerError | SpecError:
    """The API server's answer by whose fault it is and whether repeating helps."""
    text = f"API server: {verb} {path}: {error.status} {error.reason}: {str(error.body)[:500]}"
    match error.status:
        case 404:
            return NotThere(text)
        case 409:
            return Conflict(text)
        case 400 | 405 | 413 | 415 | 422:
            return SpecError(text)
    # 403 too: an API server that just started refuses all until it has read its roles.
    return PeerError(text)
