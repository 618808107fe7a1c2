"""Manifests from files and folders, each with the place it stands at.

Reads what `kubectl apply -f` reads: YAML with several documents, JSON, `kind: List`; of a folder
the files ending in .yaml, .yml or .json, not its subfolders. Knows no field of our kinds: what a
spec may hold is `mux_operator.schema`'s. Reading changes nothing and never raises for a bad file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

GROUP: Final = "muxserve.io"
KINDS: Final = ("LLMDeployment", "GPUPool")
SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_BYTES: Final = 1 << 20
"""A larger file is no manifest of ours; etcd takes 1.5 MiB per object."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """Why a manifest cannot be used: where it stands, what is wrong and the fix."""

    file: Path
    line: int
    subject: str
    message: str

    def __str__(self) -> str:
        subject = f"{self.subject}: " if self.subject else ""
        return f"{self.file}:{self.line}: {subject}{self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One object as written. `lines` maps a field's path (`spec.model.uri`) to its line."""

    kind: str
    namespace: str
    name: str
    document: Mapping[str, Any]
    file: Path
    line: int
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.kind, self.namespace, self.name)

    @property
    def subject(self) -> str:
        return f"{self.kind}/{self.name}"

    def problem(self, message: str, *, path: str = "") -> Problem:
        """A problem of this object, at the line of the field that `path` names or lies in."""
        where = path
        while where and where not in self.lines:
            where = where.rpartition(".")[0]
        return Problem(file=self.file, line=self.lines.get(where, self.line),
                       subject=self.subject, message=message)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FileContent:
    """What one file gave; with a problem, `manifests` are those that could still be read."""

    file: Path
    manifests: tuple[Manifest, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def manifest_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files that `paths` stand for now, each once, in order of name within a folder."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
            found.update(dict.fromkeys(p for p in inside if not p.name.startswith(".")))
        elif path.exists():
            found[path] = None
    return tuple(found)


def read_file(file: Path) -> FileContent:
    """Reads one file. A bad document does not hide the good ones before it."""
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    notes: list[str] = []
    try:
        for node in _documents(file):
            for item in _items(node):
                _take(item, file=file, manifests=manifests, problems=problems, notes=notes)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "cannot be parsed"
        problems.append(_problem(file, (mark.line + 1) if mark else 1, f"not YAML: {what}"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(_problem(file, 1, f"not YAML: {str(error).splitlines()[0]}"))
    except RecursionError:
        problems.append(_problem(file, 1, "nested too deep to read; no manifest is"))
    except OSError as error:
        problems.append(_problem(file, 1, f"cannot be read: {error.strerror}"))
    return FileContent(file=file, manifests=tuple(manifests), problems=tuple(problems),
                       notes=tuple(notes))  # fmt: skip


def twice_named(contents: Sequence[FileContent]) -> tuple[Problem, ...]:
    """Objects that stand in more than one place; the first place keeps the name."""
    first: dict[tuple[str, str, str], Manifest] = {}
    problems = []
    for manifest in (m for content in contents for m in content.manifests):
        other = first.setdefault(manifest.key, manifest)
        if other is not manifest:
            message = f"given twice, first at {other.file}:{other.line}; remove one"
            problems.append(manifest.problem(message, path="metadata"))
    return tuple(problems)


def _documents(file: Path) -> Iterator[yaml.MappingNode]:
    if file.stat().st_size > MAX_BYTES:
        raise OSError(27, f"larger than {MAX_BYTES} bytes; no manifest is")
    for node in yaml.compose_all(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader):
        if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
            continue
        if not isinstance(node, yaml.MappingNode):
            raise yaml.MarkedYAMLError(
                problem="a document must be an object with apiVersion and kind",
                problem_mark=node.start_mark,
            )
        yield node


def _items(node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
    """The document itself, or the items of a `kind: List`."""
    values = {key.value: value for key, value in node.value}
    kind, items = values.get("kind"), values.get("items")
    if kind is None or kind.value != "List" or not isinstance(items, yaml.SequenceNode):
        yield node
        return
    for item in items.value:
        if isinstance(item, yaml.MappingNode):
            yield item


def _take(
    node: yaml.MappingNode, *, file: Path, manifests: list[Manifest], problems: list[Problem],
    notes: list[str],
) -> None:  # fmt: skip
    """Sorts one document into manifests, problems and notes."""
    line = node.start_mark.line + 1
    lines: dict[str, int] = {}
    problems.extend(_problem(file, at, what) for at, what in _walk(node, "", lines, set()))
    document = _construct(node)
    group = str(document.get("apiVersion", "")).partition("/")[0]
    kind = str(document.get("kind", ""))
    if group != GROUP and kind and document.get("apiVersion"):
        notes.append(f"{file}:{line}: {kind} is not of {GROUP}; ignored on this machine")
        return
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if kind not in KINDS:
        problems.append(_problem(file, lines.get("kind", line), f"kind {kind!r} is not known; "
                                 f"muxserve up reads {' and '.join(KINDS)}"))  # fmt: skip
    elif not isinstance(metadata, dict) or not isinstance(name, str) or not name:
        problems.append(_problem(file, lines.get("metadata", line),
                                 f"{kind}: metadata.name is missing; give it a name"))  # fmt: skip
    else:
        manifests.append(Manifest(kind=kind, namespace=str(metadata.get("namespace") or "default"),
                                  name=name, document=document, file=file, line=line,
                                  lines=lines))  # fmt: skip


def _construct(node: yaml.MappingNode) -> dict[str, Any]:
    loader = yaml.SafeLoader("")
    try:
        return dict(loader.construct_document(node))
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node, path: str, lines: dict[str, int], seen: set[int]
) -> Iterator[tuple[int, str]]:
    """Fills `lines`; yields (line, what) for keys given twice, which YAML would drop silently.

    `seen` ends the walk at an alias that leads back to its own anchor.
    """
    if id(node) in seen and not isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[f"{path}[{index}]"] = item.start_mark.line + 1
            yield from _walk(item, f"{path}[{index}]", lines, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = f"{path}.{key.value}" if path else str(key.value)
        if here in lines:
            yield key.start_mark.line + 1, f"{here} is given twice; remove one"
        lines[here] = key.start_mark.line + 1
        yield from _walk(value, here, lines, seen)


def _problem(file: Path, line: int, message: str) -> Problem:
    return Problem(file=file, line=line, subject="", message=message)
