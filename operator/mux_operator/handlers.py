"""kopf's door: watches fill indexes, events mark keys; nothing else imports kopf.

No create, update or delete handlers, no daemons, no timers: kopf writes nothing on any object and
adds no finalizer. Its indexes are complete before the first event handler runs, so whoever marks
a key may read all of them.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import kopf

from mux_operator import names
from mux_operator.observing import Object
from mux_operator.schema import GROUP, VERSION

OURS: Final = {names.PART_OF: names.US}
_CHILDREN: Final = (("", "v1", "pods"), ("", "v1", "configmaps"), ("", "v1", "services"))
_KINDS: Final = tuple((GROUP, VERSION, kind) for kind in
                      ("llmdeployments", "gpupools", "placementplans"))  # fmt: skip
_OUTAGE_S: Final = (1, 1, 2, 3, 5, *(10 for _ in range(10_000)))
"""kopf ends when an outage outlasts this list; ours never should."""

Changed = Callable[[str, str | None], None]


class Indexes:
    """The watched objects, once kopf has them; implements `mux_operator.kube.Store`."""

    def __init__(self) -> None:
        self.complete = asyncio.Event()
        self._kinds: dict[str, Any] = {}

    def bind(self, found: dict[str, Any]) -> None:
        if not self._kinds:
            self._kinds = found
            self.complete.set()

    def all(self, kind: str, namespace: str) -> Iterable[Object]:
        return [item for item in self.namespaced(kind)
                if not namespace or item["metadata"].get("namespace") == namespace]  # fmt: skip

    def one(self, kind: str, namespace: str, name: str) -> Object | None:
        values = self._kinds.get(kind, {}).get((namespace, name), ())
        return next(iter(values), None)

    def namespaced(self, kind: str) -> Iterable[Object]:
        index = self._kinds.get(kind, {})
        return [item for key in list(index) for item in index[key]]


def registry(
    indexes: Indexes, *, changed: Changed, event: Callable[[str, float], None], nodes: bool
) -> kopf.OperatorRegistry:
    """Handlers that keep `indexes` and call `changed(namespace, pool or None)`."""
    handlers = kopf.OperatorRegistry()
    watched = (*_KINDS, *_CHILDREN, *((("", "v1", "nodes"),) if nodes else ()))
    kinds = [kind for _, _, kind in watched]
    for group, version, kind in watched:
        ours = OURS if (group, version, kind) in _CHILDREN else None
        kopf.index(group, version, kind, id=kind, labels=ours, registry=handlers)(_indexed)
        kopf.on.event(group, version, kind, id=f"{kind}-changed", labels=ours,
                      registry=handlers)(_marker(indexes, kinds, kind, changed, event))  # fmt: skip
    kopf.on.login(registry=handlers)(_login)
    return handlers


def _indexed(
    namespace: str | None, name: str, body: kopf.Body, **_: Any
) -> dict[tuple[str, str], Object]:  # fmt: skip
    """The object without what no decision reads."""
    kept = {key: value for key, value in body.items() if key != "metadata"}
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return {(namespace or "", name): {**kept, "metadata": metadata}}


def _marker(
    indexes: Indexes, kinds: Sequence[str], kind: str, changed: Changed,
    event: Callable[[str, float], None],
) -> Callable[..., None]:  # fmt: skip
    def mark(namespace: str | None, body: kopf.Body, **kwargs: Any) -> None:
        indexes.bind({name: kwargs[name] for name in kinds})
        event(kind, time.time())
        marks = body["metadata"].get("labels") or {}
        changed(namespace or "", marks.get(names.POOL) if kind in ("pods", "configmaps") else None)

    return mark


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def settings() -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.networking.request_timeout = 30
    chosen.networking.error_backoffs = _OUTAGE_S
    chosen.watching.server_timeout = 300
    chosen.watching.client_timeout = 330
    chosen.watching.connect_timeout = 10
    chosen.queueing.worker_limit = 32
    chosen.execution.max_workers = 8
    chosen.process.ultimate_exiting_timeout = 20
    chosen.scanning.disabled = True
    return chosen


async def watch(
    handlers: kopf.OperatorRegistry, *, namespaces: Sequence[str], ready: asyncio.Event | None
) -> None:
    """Watches until cancelled; ends by itself only when kopf gives up."""
    await kopf.operator(
        registry=handlers, settings=settings(), namespaces=list(namespaces),
        clusterwide=not namespaces, standalone=True, ready_flag=ready,
    )  # fmt: skip
