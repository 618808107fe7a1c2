"""A pod's volumes as folders of this machine."""

import os
import shutil
from itertools import count
from pathlib import Path

from harness.api import Object
from harness.kubelet.inputs import NotYetError, PodInputs, quantity
from harness.kubelet.sandbox import Bind, mount, unmount

_SHARED_MEMORY_BYTES = 64 * 2**20  # what container runtimes give a pod by default
_DATA = "..data"


class Volumes:
    """Owns the folder that holds them. ConfigMaps, Secrets and tokens follow their source."""

    def __init__(self, inputs: PodInputs, folder: Path) -> None:
        self._inputs = inputs
        self._folder = folder
        self._places: dict[str, Path] = {}
        self._mounted: list[Path] = []
        self._generations = count()
        self.shared_memory = folder / "shared-memory"

    async def prepare(self) -> None:
        """Make all volumes; raises NotYetError while a source is missing, then call again."""
        if self.shared_memory not in self._mounted:
            self._mount_memory(self.shared_memory, _SHARED_MEMORY_BYTES)
        for volume in self._declared():
            self._places[volume["name"]] = await self._place(volume)

    async def refresh(self) -> None:
        """Write again what follows a source; a source that is gone keeps its last files."""
        for volume in self._declared():
            try:
                await self._render(volume)
            except NotYetError:
                continue

    def binds(self, container: Object) -> list[Bind]:
        """What the container sees where."""
        return [self._bind(item) for item in container.get("volumeMounts") or []]

    def remove(self) -> None:
        for place in reversed(self._mounted):
            unmount(place)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _declared(self) -> list[Object]:
        volumes: list[Object] = self._inputs.pod["spec"].get("volumes") or []
        return volumes

    def _bind(self, item: Object) -> Bind:
        source = self._places[item["name"]]
        if item.get("subPath"):
            source = source / item["subPath"]
            if not source.exists():
                source.mkdir(parents=True)
        volume = next(v for v in self._declared() if v["name"] == item["name"])
        claim = volume.get("persistentVolumeClaim") or {}
        read_only = bool(item.get("readOnly") or claim.get("readOnly"))
        return Bind(str(source), item["mountPath"].rstrip("/") or "/", read_only)

    async def _place(self, volume: Object) -> Path:
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        if "persistentVolumeClaim" in volume:
            return await self._inputs.claim(volume["persistentVolumeClaim"]["claimName"])
        place = self._folder / "volumes" / str(volume["name"])
        place.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            empty = volume["emptyDir"] or {}
            if empty.get("medium") == "Memory" and place not in self._mounted:
                self._mount_memory(place, int(quantity(str(empty.get("sizeLimit", "0")))))
        else:
            await self._render(volume)
        return place

    def _mount_memory(self, place: Path, size: int) -> None:
        place.mkdir(parents=True, exist_ok=True)
        # Size 0 means no limit, to tmpfs as to Kubernetes.
        mount("tmpfs", place, "tmpfs", 0, f"size={size},mode=1777")
        self._mounted.append(place)

    async def _render(self, volume: Object) -> None:
        sources = _sources(volume)
        if sources is None:
            return
        files: dict[str, bytes] = {}
        for source in sources:
            files |= await self._files(source)
        place = self._folder / "volumes" / str(volume["name"])
        publish(place, files, f"..{next(self._generations)}")

    async def _files(self, source: Object) -> dict[str, bytes]:
        if "configMap" in source:
            reference = source["configMap"]
            optional = bool(reference.get("optional"))
            entries = await self._inputs.entries("configmaps", reference["name"], optional=optional)
            return _pick(entries, reference)
        if "secret" in source:
            reference = source["secret"]
            name = reference.get("secretName") or reference["name"]
            optional = bool(reference.get("optional"))
            return _pick(await self._inputs.entries("secrets", name, optional=optional), reference)
        if "serviceAccountToken" in source:
            token = source["serviceAccountToken"]
            return {token["path"]: await self._inputs.token(token)}
        return {item["path"]: self._downward(item) for item in source["downwardAPI"]["items"]}

    def _downward(self, item: Object) -> bytes:
        if "fieldRef" in item:
            return self._inputs.field(item["fieldRef"]["fieldPath"]).encode()
        return self._inputs.resource(item["resourceFieldRef"], {}).encode()


def _sources(volume: Object) -> list[Object] | None:
    """The parts of a volume made of files, or None for other kinds."""
    if "projected" in volume:
        projected: list[Object] = volume["projected"].get("sources") or []
        return projected
    kinds = ("configMap", "secret", "downwardAPI")
    return [volume] if any(kind in volume for kind in kinds) else None


def _pick(entries: dict[str, bytes], reference: Object) -> dict[str, bytes]:
    items = reference.get("items")
    if not items:
        return entries
    missing = [item["key"] for item in items if item["key"] not in entries]
    if missing and not reference.get("optional"):
        raise NotYetError(f"references non-existent key {missing[0]}")
    return {item["path"]: entries[item["key"]] for item in items if item["key"] in entries}


def publish(place: Path, files: dict[str, bytes], generation: str) -> None:
    """Show `files` in the folder `place`, all at once.

    As the kubelet does it: each name is a link through `..data`, which is swapped, so a reader
    sees either the old set or the new one, and a watcher sees one event.
    """
    data = place / _DATA
    if data.exists() and _content(data) == files:
        return
    fresh = place / generation
    for name, content in files.items():
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh / name).write_bytes(content)
    fresh.mkdir(exist_ok=True)
    old = place / os.readlink(data) if data.is_symlink() else None
    draft = place / "..data_tmp"
    draft.symlink_to(generation)
    draft.rename(data)
    _link_names(place, {name.split("/", 1)[0] for name in files})
    if old is not None:
        shutil.rmtree(old)


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _link_names(place: Path, names: set[str]) -> None:
    present = {path.name for path in place.iterdir() if not path.name.startswith("..")}
    for name in present - names:
        (place / name).unlink()
    for name in names - present:
        (place / name).symlink_to(f"{_DATA}/{name}")
