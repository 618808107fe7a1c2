"""A workload out of the manifests of a cluster: one GPUPool and its LLMDeployments."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mux_cli.workload_file import Workload
from mux_core.checkpoint import ResolvedModel, Unresolved
from mux_core.costmodel.hardware import gpu_type
from mux_core.errors import SpecError
from mux_core.llm import Llm
from mux_core.placement import GpuNode
from mux_core.planning import PlanningPolicy
from mux_core.specs import LlmSpec, PoolSpec, Scheme
from mux_core.units import ModelName


def read_manifests(paths: Sequence[Path]) -> Workload:
    """The pool's static nodes and every LLMDeployment with its declared demand."""
    from mux_operator.schema import parse_llm, parse_pool, with_defaults

    documents = [document for path in paths for document in _documents(path)]
    pools = [found for found in documents if found.get("kind") == "GPUPool"]
    llms = [found for found in documents if found.get("kind") == "LLMDeployment"]
    if len(pools) != 1 or not llms:
        raise SpecError(
            f"-f: {len(pools)} GPUPools and {len(llms)} LLMDeployments in "
            f"{', '.join(map(str, paths))}; give one pool and at least one "
            "LLMDeployment"
        )
    _refuse_invalid(documents)
    pool = parse_pool(with_defaults(pools[0]))
    return Workload(
        nodes=_nodes(pool),
        llms=tuple(_llm(found, parse_llm(with_defaults(found))) for found in llms),
        policy=PlanningPolicy(
            allow_sharing=pool.allow_sharing,
            group_sizes=pool.group_sizes,
            step_percent=pool.share_step_percent,
            max_tensor_members=pool.max_tensor_members,
            gpu_limit=pool.gpu_limit,
            min_gain=pool.min_gain_percent / 100,
        ),
    )


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    files = sorted(path.rglob("*.y*ml")) if path.is_dir() else [path]
    for file in files:
        try:
            found = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SpecError(
                f"-f {file}: cannot be read as YAML ({error}); give manifests"
            ) from error
        yield from (document for document in found if isinstance(document, dict))


def _refuse_invalid(documents: Sequence[dict[str, Any]]) -> None:
    from mux_operator.schema import KINDS, validate

    for document in documents:
        if document.get("kind") in KINDS:
            validate(document)


def _nodes(pool: PoolSpec) -> tuple[GpuNode, ...]:
    if not pool.static:
        raise SpecError(
            "GPUPool: no gpu.static nodes; planning from files needs them, e.g. "
            "gpu: {static: [{node: n0, count: 8}]}"
        )
    gpu = gpu_type(pool.product or "cpu")
    return tuple(
        GpuNode(name=node.node, gpus=node.count, memory=node.memory or gpu.memory, gpu=gpu.name)
        for node in pool.static
    )


def _llm(document: dict[str, Any], spec: LlmSpec) -> Llm:
    name = str(document["metadata"]["name"])
    if spec.declared is None or spec.declared.rate <= 0:
        raise SpecError(
            f"LLMDeployment {name}: no declared demand; planning from files needs "
            "workload.requestRate above 0"
        )
    resolved = _resolve(name, spec)
    return Llm(
        name=ModelName(name),
        weight_bytes=resolved.weight_bytes,
        geometry=resolved.geometry,
        demand=spec.declared,
        slo=spec.slo,
        sharing=spec.sharing,
        allowed_tensor=spec.allowed_tensor,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        priority=spec.priority,
        movable=spec.movable,
    )


def _resolve(name: str, spec: LlmSpec) -> ResolvedModel:
    from mux_runtime.inspect import inspect

    if spec.source.scheme is not Scheme.FILE:
        raise SpecError(
            f"LLMDeployment {name}: source {spec.source.key}; planning from files reads "
            "file:// sources only, others through a workload file with config"
        )
    found = inspect(Path(spec.source.folder))
    if isinstance(found, Unresolved):
        raise SpecError(f"LLMDeployment {name}: {found.message}")
    return found
