"""The workload file: a cluster and the LLMs that want to run on it, as JSON or YAML.

`read_workload` checks everything a person can get wrong before any planning starts; each message
names the subject, the value, the limit and the fix.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mux_core.checkpoint import read_geometry
from mux_core.costmodel.hardware import gpu_type
from mux_core.costmodel.profile_file import load_table
from mux_core.costmodel.table import StepTable
from mux_core.errors import SpecError, UnsupportedModel
from mux_core.estimator.muxserve import reference_model
from mux_core.llm import Demand, Llm, ModelGeometry, SharingPolicy, Slo
from mux_core.placement import GpuNode
from mux_core.planning import PlanningPolicy
from mux_core.units import GIB, Bytes, ModelName, NodeName, Percent

MOST_MODELS = 20_000
MOST_GPUS = 100_000
Fields = Mapping[str, Any]

_CLUSTER = {"nodes", "gpus_per_node", "gpu", "max_tensor_parallel_members_per_unit",
            "maxTensorParallelMembersPerUnit"}  # fmt: skip
_TOP = {"cluster", "models", "max_tensor_parallel_members_per_unit",
        "maxTensorParallelMembersPerUnit"}  # fmt: skip
_MODEL = {
    "name", "profile", "config", "rate", "prompt_tokens", "output_tokens", "slo", "priority",
    "tenant_group", "exclusive", "allowed_tensor", "min_percent", "max_percent",
    "kv_request_bytes", "kv_limit_bytes", "min_replicas", "max_replicas", "movable",
    "spatial_gpus", "burstiness",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a workload file or manifests state; `llms` in their order."""

    nodes: tuple[GpuNode, ...]
    llms: tuple[Llm, ...]
    tables: Mapping[str, StepTable] = field(default_factory=dict)
    policy: PlanningPolicy = field(default_factory=PlanningPolicy)


def read_workload(path: Path) -> Workload:
    """The workload in a file. Raises SpecError, with the path, for anything wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"workload {path}: cannot be read ({error}); give a JSON or YAML file"
                        ) from error  # fmt: skip
    try:
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        line = str(error).splitlines()[0]
        raise SpecError(f"workload {path}: is not JSON or YAML ({line}); `muxserve workload` "
                        "writes one") from error  # fmt: skip
    try:
        return parse_workload(document, folder=path.parent)
    except SpecError as error:
        raise SpecError(f"workload {path}: {error}") from error


def parse_workload(document: object, *, folder: Path) -> Workload:
    """The workload in a parsed document; `folder` is what `config` paths are relative to."""
    top = _fields(document, "the document", _TOP)
    cluster = _fields(top.get("cluster"), "cluster", _CLUSTER)
    nodes = _nodes(cluster)
    models = top.get("models")
    if not isinstance(models, list) or not models:
        raise SpecError("models: no list of models; at least one, e.g. models: [{name: a, profile: "
                        "llama-7b, rate: 2}]")  # fmt: skip
    if len(models) > MOST_MODELS:
        raise SpecError(f"models: {len(models)} models; at most {MOST_MODELS} per file; split the "
                        "workload by pool")  # fmt: skip
    replicas = sum(node.gpus for node in nodes)
    llms = tuple(
        _llm(model, index, folder=folder, most_replicas=replicas)
        for index, model in enumerate(models)
    )
    _refuse_duplicates(llms)
    limit = None
    for owner in (top, cluster):
        for key in ("max_tensor_parallel_members_per_unit", "maxTensorParallelMembersPerUnit"):
            if owner.get(key) is not None:
                limit = _whole(owner, key, "cluster", least=1)
    policy = PlanningPolicy(max_tensor_members=limit)
    return Workload(nodes=nodes, llms=llms, tables=_tables(llms, folder), policy=policy)


def _nodes(cluster: Fields) -> tuple[GpuNode, ...]:
    count = _whole(cluster, "nodes", "cluster", least=1)
    gpus = _whole(cluster, "gpus_per_node", "cluster", least=1)
    if count * gpus > MOST_GPUS:
        raise SpecError(f"cluster: {count} nodes of {gpus} GPUs; at most {MOST_GPUS} GPUs; plan "
                        "pool by pool")  # fmt: skip
    sheet = gpu_type(str(cluster.get("gpu", "a100-80gb")))
    width = len(str(count - 1))
    return tuple(
        GpuNode(
            name=NodeName(f"node-{index:0{width}d}"), gpus=gpus, memory=sheet.memory, gpu=sheet.name
        )
        for index in range(count)
    )


def _llm(document: object, index: int, *, folder: Path, most_replicas: int) -> Llm:
    model = _fields(document, f"models[{index}]", _MODEL)
    name = model.get("name")
    if not isinstance(name, str) or not name:
        raise SpecError(f"models[{index}]: name {name!r}; a non-empty string")
    subject = f"model {name}"
    rate = _number(model, "rate", subject)
    if not 0 < rate < 1e6:
        raise SpecError(f"{subject}: rate {rate:g} requests/s; above 0 and below 1e6; leave the "
                        "model out if nothing asks for it")  # fmt: skip
    geometry, profile, weights = _cost_source(model, subject, folder)
    least = _whole(model, "min_replicas", subject, least=1, default=1)
    return Llm(
        name=ModelName(name),
        weight_bytes=weights,
        geometry=geometry,
        profile=profile,
        demand=Demand(
            rate=rate,
            prompt_tokens=_positive(model, "prompt_tokens", subject, 161.0),
            output_tokens=_positive(model, "output_tokens", subject, 337.0),
            burstiness=_positive(model, "burstiness", subject, 1.0),
        ),
        slo=_slo(model.get("slo"), subject),
        sharing=_sharing(model, subject),
        allowed_tensor=_tensors(model, subject),
        min_replicas=least,
        max_replicas=_whole(
            model, "max_replicas", subject, least=1, default=max(least, most_replicas)
        ),
        priority=_whole(model, "priority", subject, least=-(2**31), default=0),
        movable=_flag(model, "movable", subject, True),
        spatial_gpus=_optional_whole(model, "spatial_gpus", subject),
    )


def _cost_source(
    model: Fields, subject: str, folder: Path
) -> tuple[ModelGeometry | None, str | None, Bytes]:
    profile, config = model.get("profile"), model.get("config")
    measured = isinstance(profile, str) and profile.endswith(".json")
    if measured and config is None:
        raise SpecError(f"{subject}: profile {profile} is a file of step times; give config too, "
                        "the path of the model's config.json")  # fmt: skip
    if not measured and (profile is None) == (config is None):
        raise SpecError(f"{subject}: profile {profile!r} and config {config!r}; exactly one of the "
                        "two says what it costs")  # fmt: skip
    if profile is not None and not measured:
        found = reference_model(str(profile))
        return None, found.name, Bytes(int(found.weights_gb * GIB))
    path = folder / str(config)
    try:
        geometry = read_geometry(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{subject}: config {path} cannot be read ({error}); give the path of a "
                        "config.json") from error  # fmt: skip
    except UnsupportedModel as error:
        raise SpecError(f"{subject}: config {path}: {error}") from error
    return geometry, profile if measured else None, geometry.weight_bytes


def _tables(llms: tuple[Llm, ...], folder: Path) -> dict[str, StepTable]:
    """The profile files that models name, each read once."""
    tables: dict[str, StepTable] = {}
    for llm in llms:
        if llm.profile is None or llm.geometry is None or llm.profile in tables:
            continue
        path = folder / llm.profile
        subject = f"model {llm.name}: profile {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{subject}: cannot be read ({error}); give a file that muxserve "
                            "profile wrote") from error  # fmt: skip
        tables[llm.profile] = load_table(text, subject=subject)
    return tables


def _sharing(model: Fields, subject: str) -> SharingPolicy:
    least = _optional_whole(model, "min_percent", subject)
    most = _whole(model, "max_percent", subject, least=1, default=100)
    if most > 100 or (least or 1) > most:
        raise SpecError(f"{subject}: min_percent {least}, max_percent {most}; 1 <= min <= max <= "
                        "100")  # fmt: skip
    request = _whole(model, "kv_request_bytes", subject, least=0, default=0)
    limit = _optional_whole(model, "kv_limit_bytes", subject)
    if limit is not None and limit < request:
        raise SpecError(f"{subject}: kv_limit_bytes {limit} is below kv_request_bytes {request}; "
                        "raise the limit")  # fmt: skip
    return SharingPolicy(
        exclusive=_flag(model, "exclusive", subject, False),
        tenant_group=str(model.get("tenant_group") or ""),
        min_percent=None if least is None else Percent(least),
        max_percent=Percent(most),
        kv_request=Bytes(request),
        kv_limit=None if limit is None else Bytes(limit),
    )


def _slo(document: object, subject: str) -> Slo | None:
    if document is None:
        return None
    slo = _fields(document, f"{subject}: slo", {"ttft_ms", "tpot_ms", "objective"})
    ttft, tpot = slo.get("ttft_ms"), slo.get("tpot_ms")
    objective = _positive(slo, "objective", f"{subject}: slo", 0.99)
    if objective >= 1:
        raise SpecError(f"{subject}: slo objective {objective:g}; a share below 1, e.g. 0.99")
    return Slo(
        ttft_s=None if ttft is None else _positive(slo, "ttft_ms", f"{subject}: slo", 0) / 1000,
        tpot_s=None if tpot is None else _positive(slo, "tpot_ms", f"{subject}: slo", 0) / 1000,
        objective=objective,
    )


def _tensors(model: Fields, subject: str) -> tuple[int, ...]:
    found = model.get("allowed_tensor") or []
    if not isinstance(found, list) or any(degree not in (1, 2, 4, 8) for degree in found):
        raise SpecError(f"{subject}: allowed_tensor {found!r}; a list out of 1, 2, 4, 8")
    return tuple(sorted(set(found)))


def _refuse_duplicates(llms: tuple[Llm, ...]) -> None:
    seen: set[str] = set()
    for llm in llms:
        if llm.name in seen:
            raise SpecError(f"model {llm.name}: the name is given twice; names are unique, use "
                            "max_replicas for copies")  # fmt: skip
        seen.add(llm.name)


def _fields(document: object, subject: str, known: set[str]) -> Fields:
    if not isinstance(document, dict):
        raise SpecError(f"{subject}: {type(document).__name__} given; a mapping is needed")
    unknown = sorted(str(key) for key in document if key not in known)
    if unknown:
        raise SpecError(f"{subject}: unknown field {unknown[0]}; known: {', '.join(sorted(known))}")
    return document


def _number(fields: Fields, key: str, subject: str) -> float:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise SpecError(f"{subject}: {key} {value!r}; a number is needed")
    return float(value)


def _positive(fields: Fields, key: str, subject: str, default: float) -> float:
    if fields.get(key) is None:
        return default
    value = _number(fields, key, subject)
    if not 0 < value < 1e9:
        raise SpecError(f"{subject}: {key} {value:g}; above 0 and below 1e9")
    return value


def _whole(
    fields: Fields, key: str, subject: str, *, least: int, default: int | None = None
) -> int:
    value = fields.get(key, default)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpecError(f"{subject}: {key} {value!r}; a whole number of at least {least}")
    return value


def _optional_whole(fields: Fields, key: str, subject: str) -> int | None:
    return None if fields.get(key) is None else _whole(fields, key, subject, least=1)


def _flag(fields: Fields, key: str, subject: str, default: bool) -> bool:
    value = fields.get(key, default)
    if not isinstance(value, bool):
        raise SpecError(f"{subject}: {key} {value!r}; true or false")
    return value
