"""Everything a pod's containers read from the cluster: fields, resources, entries, tokens."""

import asyncio
import json
import re
import time
from decimal import Decimal
from pathlib import Path

from harness.api import Api, ApiError, Object
from harness.kubelet.settings import NodeSettings
from harness.kubelet.sources import Kind, Sources

_SCALES = {"": Decimal(1), "m": Decimal("0.001")}
_SCALES |= {unit: Decimal(1000) ** power for power, unit in enumerate("kMGT", start=1)}
_SCALES |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGT", start=1)}
_MAP_FIELD = re.compile(r"metadata\.(labels|annotations)(?:\['(.+)'\])?")


class NotYetError(Exception):
    """An input is not there now; the pod waits, as on a real node."""


def quantity(text: str) -> Decimal:
    """The number a Kubernetes quantity stands for."""
    match = re.fullmatch(r"([\d.]+)([a-zA-Z]*)", text)
    if match is None or match[2] not in _SCALES:
        raise ValueError(f"quantity {text!r} is not understood")
    return Decimal(match[1]) * _SCALES[match[2]]


class PodInputs:
    """Reads for one pod. `changed` is set when a ConfigMap or Secret that was read changes."""

    def __init__(
        self, api: Api, sources: Sources, node: NodeSettings, *, pod: Object, address: str
    ) -> None:
        self.pod = pod
        self.address = address
        self.changed = asyncio.Event()
        self._api = api
        self._sources = sources
        self._node = node
        self._tokens: dict[str, tuple[bytes, float]] = {}

    @property
    def namespace(self) -> str:
        namespace: str = self.pod["metadata"]["namespace"]
        return namespace

    def forget(self) -> None:
        self._sources.forget(self.changed)

    def field(self, path: str) -> str:
        """A downward-API field of this pod."""
        metadata = self.pod["metadata"]
        match = _MAP_FIELD.fullmatch(path)
        if match is not None:
            return _map_field(metadata.get(match[1]) or {}, match[2])
        fields = {
            "metadata.name": metadata["name"],
            "metadata.namespace": self.namespace,
            "metadata.uid": metadata["uid"],
            "spec.nodeName": self._node.name,
            "spec.serviceAccountName": self.pod["spec"].get("serviceAccountName", "default"),
            "status.hostIP": self._node.address,
            "status.hostIPs": self._node.address,
            "status.podIP": self.address,
            "status.podIPs": self.address,
        }
        return str(fields[path])

    def resource(self, reference: Object, container: Object) -> str:
        """A container's request or limit in units of the divisor, rounded up."""
        named = reference.get("containerName")
        if named:
            container = next(c for c in self.pod["spec"]["containers"] if c["name"] == named)
        side, name = reference["resource"].split(".", 1)
        given = ((container.get("resources") or {}).get(side) or {}).get(name)
        # Without a limit the node's size is the limit.
        amount = quantity(str(given if given is not None else self._node.capacity().get(name, "0")))
        divisor = quantity(str(reference.get("divisor") or "1")) or Decimal(1)
        return str(-int(-amount // divisor))

    async def entries(self, kind: Kind, name: str, *, optional: bool) -> dict[str, bytes]:
        """All entries of a ConfigMap or Secret."""
        found = await self._sources.read((kind, self.namespace, name), self.changed)
        if found is None and not optional:
            raise NotYetError(f'{kind[:-1]} "{name}" not found')
        return found or {}

    async def token(self, source: Object) -> bytes:
        """A ServiceAccount token bound to this pod, renewed at 80 % of its life."""
        audience = source.get("audience", "")
        token, renew_at = self._tokens.get(audience, (b"", 0.0))
        if time.monotonic() < renew_at:
            return token
        seconds = source.get("expirationSeconds", 3600)
        answer = await self._request_token(audience, seconds)
        text: str = answer["status"]["token"]
        token = text.encode()
        self._tokens[audience] = (token, time.monotonic() + seconds * 0.8)
        return token

    async def claim(self, name: str) -> Path:
        """The folder behind a bound PersistentVolumeClaim (a static hostPath or local volume)."""
        path = f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims/{name}"
        claim = await self._get(path)
        if (claim.get("status") or {}).get("phase") != "Bound":
            raise NotYetError(f'persistentvolumeclaim "{name}" is not bound')
        volume_name = claim["spec"]["volumeName"]
        volume = await self._get(f"/api/v1/persistentvolumes/{volume_name}")
        for kind in ("hostPath", "local"):
            if kind in volume["spec"]:
                return Path(volume["spec"][kind]["path"])
        raise NotYetError(f'persistentvolume "{volume_name}" is neither hostPath nor local')

    async def _get(self, path: str) -> Object:
        try:
            return await self._api.get(path)
        except ApiError as error:
            raise NotYetError(str(error)) from error

    async def _request_token(self, audience: str, seconds: int) -> Object:
        metadata = self.pod["metadata"]
        account = self.pod["spec"].get("serviceAccountName", "default")
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
            },
        }
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        try:
            return await self._api.request("POST", path, body)
        except ApiError as error:
            raise NotYetError(str(error)) from error


def _map_field(values: dict[str, str], key: str | None) -> str:
    if key is not None:
        return values.get(key, "")
    return "\n".join(f"{name}={json.dumps(value)}" for name, value in sorted(values.items()))
