"""ConfigMaps and Secrets that running pods use, each watched once."""

import asyncio
import base64
from dataclasses import dataclass, field
from typing import Literal

from harness.api import Api, Changed, Object

Kind = Literal["configmaps", "secrets"]
Key = tuple[Kind, str, str]


@dataclass(slots=True)
class _Watched:
    task: asyncio.Task[None]
    object: Object | None = None
    is_known: asyncio.Event = field(default_factory=asyncio.Event)
    readers: set[asyncio.Event] = field(default_factory=set)


class Sources:
    """Answers from its watches; sets a reader's event when something that it read changed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._watched: dict[Key, _Watched] = {}

    async def read(self, key: Key, changed: asyncio.Event) -> dict[str, bytes] | None:
        """The object's entries, or None while it does not exist."""
        if key not in self._watched:
            self._watched[key] = _Watched(asyncio.create_task(self._watch(key)))
        watched = self._watched[key]
        watched.readers.add(changed)
        await watched.is_known.wait()
        return None if watched.object is None else _entries(key[0], watched.object)

    def forget(self, changed: asyncio.Event) -> None:
        """The reader is gone; a watch without readers ends."""
        for key, watched in list(self._watched.items()):
            watched.readers.discard(changed)
            if not watched.readers:
                watched.task.cancel()
                del self._watched[key]

    async def _watch(self, key: Key) -> None:
        kind, namespace, name = key
        path = f"/api/v1/namespaces/{namespace}/{kind}"
        async for event in self._api.follow(path, f"metadata.name={name}"):
            watched = self._watched[key]
            if isinstance(event, Changed):
                watched.object = None if event.is_deleted else event.object
            else:
                watched.object = event.items[0] if event.items else None
            watched.is_known.set()
            for changed in watched.readers:
                changed.set()


def _entries(kind: Kind, source: Object) -> dict[str, bytes]:
    data: dict[str, str] = source.get("data") or {}
    binary: dict[str, str] = source.get("binaryData") or {}
    if kind == "secrets":
        return {name: base64.b64decode(text) for name, text in data.items()}
    plain = {name: text.encode() for name, text in data.items()}
    return plain | {name: base64.b64decode(text) for name, text in binary.items()}
