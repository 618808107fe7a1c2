"""The objects that the manifest files stand for: validated, with uid and generation.

What an API server keeps, kept in memory: an object has a uid from its first appearance, and its
generation grows when its spec changes. A file that is wrong changes nothing: its last good
objects stay, and it is judged again whenever any file changes.
"""

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mux_core.errors import SpecError
from mux_core.placement import GpuNode
from mux_core.snapshot import LlmObject, PoolObject
from mux_core.specs import LlmSpec, ModelSource, PoolKey, PoolSpec, Scheme, StaticNode
from mux_core.units import GIB, Bytes, ModelName, NodeName
from mux_core.unitspec import Device
from mux_operator.local.manifests import FileContent, Manifest, Problem, read_file, twice_named
from mux_operator.schema import parse_llm, parse_pool, validate

THIS_NODE: Final = NodeName("this-machine")
DEFAULT_POOL: Final = "default"
SLOT_MEMORY: Final = Bytes(2 * GIB)
"""Weights plus KV of one CPU slot, unless `gpu.static[].memory` says otherwise."""

_PATH: Final = re.compile(r'(?:unknown field )?"?([A-Za-z][\w]*(?:[.\[][\w\]]+)*)"?[:;] ')


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """A validated manifest; exactly one of `llm` and `pool` is set."""

    manifest: Manifest
    uid: str
    generation: int
    created_at: float
    llm: LlmSpec | None = None
    pool: PoolSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an update did: problems of files not taken, notes for people, whether it changed."""

    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    changed: bool = False


@dataclass(slots=True)
class Objects:
    """All objects by (kind, namespace, name); changed by `update` alone."""

    clock: Callable[[], float]
    new_uid: Callable[[], str] = lambda: str(uuid.uuid4())
    by_key: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    _files: dict[Path, tuple[Manifest, ...]] = field(default_factory=dict)
    _refused: dict[Path, str] = field(default_factory=dict)
    """Files that are wrong now -> their first problem."""

    def update(self, *, changed: Iterable[Path], gone: Iterable[Path] = ()) -> Outcome:
        """Takes over changed and removed files; files with a problem keep what they gave before."""
        files = {f: m for f, m in self._files.items() if f not in set(gone)}
        contents = [read_file(f) for f in sorted({*changed, *self._refused} - set(gone))]
        problems: list[Problem] = []
        refused, self._refused = self._refused, {}
        for content in contents:
            found = (*content.problems, *self._wrong_in(content, files))
            if found:
                problems.extend(found)
                self._refused[content.file] = str(found[0])
            else:
                files[content.file] = content.manifests
        self._files = files
        notes = tuple(note for content in contents for note in content.notes)
        said_anew = any(refused.get(f) != self._refused.get(f) for f in files)
        changed_now = self._take() or said_anew
        return Outcome(problems=tuple(problems), notes=notes, changed=changed_now)

    @property
    def namespace(self) -> str:
        """The one namespace of all objects."""
        return next(iter(sorted({key[1] for key in self.by_key})), "default")

    def pools(self) -> tuple[PoolKey, ...]:
        """Pools that exist or that a model names."""
        named = {PoolKey(namespace=key[1], name=key[2]) for key in self.by_key
                 if key[0] == "GPUPool"}  # fmt: skip
        wanted = {PoolKey(namespace=key[1], name=o.llm.pool) for key, o in self.by_key.items()
                  if o.llm is not None}  # fmt: skip
        return tuple(sorted(named | wanted))

    def pool(self, key: PoolKey) -> PoolObject | None:
        """The pool; without any GPUPool manifest, `default` is one CPU slot of this machine."""
        found = self.by_key.get(("GPUPool", key.namespace, key.name))
        if found is not None and found.pool is not None:
            return PoolObject(key=key, uid=found.uid, generation=found.generation, spec=found.pool)
        if key.name == DEFAULT_POOL and not any(k[0] == "GPUPool" for k in self.by_key):
            return PoolObject(key=key, uid="default-pool", generation=1,
                              spec=PoolSpec(device=Device.CPU))  # fmt: skip
        return None

    def llms(self, namespace: str) -> tuple[LlmObject, ...]:
        """The models of the namespace, by name; of a file that is wrong now, as last read well."""
        return tuple(_llm_object(o, wrong=self._refused.get(o.manifest.file, ""))
                     for key, o in sorted(self.by_key.items())
                     if o.llm is not None and key[1] == namespace)  # fmt: skip

    def _wrong_in(
        self, content: FileContent, files: Mapping[Path, tuple[Manifest, ...]]
    ) -> Iterable[Problem]:
        for manifest in content.manifests:
            yield from _wrong(manifest, old=self.by_key.get(manifest.key))
        others = [FileContent(file=f, manifests=m) for f, m in files.items() if f != content.file]
        yield from twice_named((*others, content))
        spaces = {m.namespace for other in others for m in other.manifests}
        for manifest in content.manifests:
            if spaces - {manifest.namespace}:
                yield manifest.problem(
                    f"metadata.namespace is {manifest.namespace!r}, others are in "
                    f"{min(spaces)!r}; muxserve up serves one namespace",
                    path="metadata.namespace",
                )
            spaces.add(manifest.namespace)

    def _take(self) -> bool:
        """Makes `by_key` follow the files; whether anything changed."""
        before = self.by_key
        now = {m.key: m for manifests in self._files.values() for m in manifests}
        self.by_key = {key: self._taken(m, before.get(key)) for key, m in sorted(now.items())}
        return self.by_key != before

    def _taken(self, manifest: Manifest, old: Object | None) -> Object:
        if old is None:
            return _parsed(Object(manifest=manifest, uid=self.new_uid(), generation=1,
                                  created_at=self.clock()))  # fmt: skip
        if old.manifest.document.get("spec") == manifest.document.get("spec"):
            return replace(old, manifest=manifest)
        return _parsed(replace(old, manifest=manifest, generation=old.generation + 1))


def inventory(pool: PoolSpec) -> tuple[GpuNode, ...]:
    """The slots of this machine that the pool may use: `gpu.static`, else one."""
    entry = pool.static[0] if pool.static else StaticNode(node=THIS_NODE, count=1)
    return (GpuNode(name=entry.node, gpus=entry.count, memory=entry.memory or SLOT_MEMORY),)


def _parsed(bare: Object) -> Object:
    document: dict[str, Any] = dict(bare.manifest.document)
    if bare.manifest.kind == "GPUPool":
        return replace(bare, pool=parse_pool(document))
    return replace(bare, llm=parse_llm(document))


def _wrong(manifest: Manifest, *, old: Object | None) -> Iterable[Problem]:
    """Everything wrong with one manifest, each at its line."""
    document: dict[str, Any] = dict(manifest.document)
    try:
        validate(document, old=dict(old.manifest.document) if old is not None else None)
        if manifest.kind == "GPUPool":
            complaints = list(_wrong_pool(parse_pool(document)))
        else:
            complaints = list(_wrong_source(parse_llm(document).source))
    except SpecError as error:
        complaints = _apart(str(error), subject=f"{manifest.kind} {manifest.name}: ")
    except (ArithmeticError, ValueError, RecursionError) as error:
        # A rule met a value outside its arithmetic; the API server refuses such a document too.
        complaints = [f"a value cannot be judged ({error}); numbers hold at most 63 bits"]
    for complaint in complaints:
        yield manifest.problem(complaint, path=_field_of(complaint))


def _wrong_pool(pool: PoolSpec) -> Iterable[str]:
    if pool.device is not Device.CPU:
        yield (f"spec.runtime.device: {pool.device} is not served by muxserve up yet; set "
               "runtime.device: CPU")  # fmt: skip
    if len(pool.static) > 1:
        yield (f"spec.gpu.static: {len(pool.static)} entries; this machine is one: keep one entry "
               "(any node name) and set its count")  # fmt: skip


def _wrong_source(source: ModelSource) -> Iterable[str]:
    if source.scheme is Scheme.FILE and not source.location.startswith("/"):
        yield (f"spec.model.uri: file://{source.location} is not absolute; write file:/// and the "
               "whole path of the folder")  # fmt: skip


def _llm_object(o: Object, *, wrong: str) -> LlmObject:
    assert o.llm is not None
    source, path, error = o.llm.source, "", ""
    if source.scheme is Scheme.FILE:
        path = source.location
    else:
        error = (f"model.uri: {source.key} cannot be reached from this machine; download the "
                 "checkpoint and write file:///FOLDER")  # fmt: skip
    return LlmObject(
        name=ModelName(o.manifest.name), uid=o.uid, generation=o.generation, spec=o.llm,
        created_at=o.created_at, path=path, source_error=error, pool=o.llm.pool,
        spec_error=f"{wrong}; what was read before stays" if wrong else "",
    )  # fmt: skip


def _apart(text: str, *, subject: str) -> list[str]:
    """The complaints that `validate` joined, without the subject each begins with."""
    parts = [part.removeprefix(subject) for part in text.split(f"; {subject}")]
    return [f"{part}; on this machine: file:///FOLDER" if "model.uri: use hf" in part else part
            for part in parts]  # fmt: skip


def _field_of(complaint: str) -> str:
    """The deepest field a complaint begins with: `spec.model: model.uri: use ...`."""
    found, rest = "", complaint
    while match := _PATH.match(rest):
        at_top = match[1].startswith(("spec", "metadata", "apiVersion"))
        found = match[1] if at_top else f"spec.{match[1]}"
        rest = rest[match.end() :].lstrip()
    return found
