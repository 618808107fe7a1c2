"""Where the step times of each LLM come from: measured before fitted before the data sheet.

`choose_costs` gives every LLM the best table there is for it, and says which kind it was; where no
table knows a degree at which it could run, the data sheet does. What reads tables (estimators,
planner, simulator) stays as it is.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from mux_core.costmodel.fit import Fit, fit_device
from mux_core.costmodel.interference import Interference
from mux_core.costmodel.measured_pairs import pair_interference
from mux_core.costmodel.profile_set import (
    CPU,
    CpuWork,
    ModelProfile,
    ProfileSet,
    UnitCost,
    planning_table,
)
from mux_core.costmodel.seen import seen_table
from mux_core.costmodel.table import StepRow, StepTable
from mux_core.errors import SpecError
from mux_core.llm import Llm, ModelGeometry
from mux_core.placement import GpuNode
from mux_core.units import ModelName


class Source(StrEnum):
    """What an estimate stands on. `shipped`: the A100 tables that come with the release."""

    MEASURED = "measured"
    FITTED = "fitted"
    DATA_SHEET = "data sheet"
    SHIPPED = "shipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """LLMs that each name their table, the tables by that name, and each LLM's source."""

    llms: tuple[Llm, ...]
    tables: Mapping[str, StepTable]
    sources: Mapping[ModelName, Source]


@dataclass(frozen=True)
class ProfileCatalog:
    """Profiles of one GPU type. The first profile that has a model of an LLM's shape counts."""

    profiles: tuple[ProfileSet, ...]

    def __post_init__(self) -> None:
        devices = sorted({(p.gpu, p.made.device, p.made.path) for p in self.profiles})
        if len(devices) > 1:
            said = "; ".join(", ".join(device) for device in devices)
            raise SpecError(f"profiles of different devices or engines: {said}; give those of one")

    @property
    def gpu(self) -> str:
        return self.profiles[0].gpu

    @cached_property
    def fit(self) -> Fit:
        return fit_device(self.profiles)

    @property
    def interference(self) -> Interference:
        """Of the pairs that were measured, where no profile's steps hold what others cost them."""
        if any(found.served.together for found in self.profiles):
            return pair_interference(())
        return pair_interference([pair for found in self.profiles for pair in found.pairs])

    @property
    def cpu(self) -> CpuWork | None:
        """The cores that steps share; None on a GPU. Without a measured unit nothing but steps."""
        if self.gpu != CPU:
            return None
        unit = next((found.unit for found in self.profiles if found.unit), UnitCost())
        return CpuWork(cores=self.profiles[0].made.cores, unit=unit)

    @cached_property
    def _known(self) -> dict[ModelGeometry, tuple[Source, StepTable]]:
        return {}

    def table(self, geometry: ModelGeometry) -> tuple[Source, StepTable]:
        """The best table for a shape, as a member of a unit sees its steps; named by the shape."""
        shape = replace(geometry, max_model_len=1)
        if shape not in self._known:
            source, table = self._table(geometry)
            digest = hashlib.sha256(repr(shape).encode()).hexdigest()[:12]
            self._known[shape] = source, replace(table, model=f"{source}:{digest}")
        return self._known[shape]

    def _table(self, geometry: ModelGeometry) -> tuple[Source, StepTable]:
        for profiles in self.profiles:
            found = profiles.find(geometry)
            if found is not None:
                return Source.MEASURED, self._planning(profiles, found)
        return Source.FITTED, self._fitted(geometry)

    def _fitted(self, geometry: ModelGeometry) -> StepTable:
        """At the points where the first profile's first model was measured."""
        profiles = self.profiles[0]
        like = profiles.models[0]
        grid: list[StepRow] = [row for cell in like.table.cells.values() for row in cell]
        made = replace(like, geometry=geometry, served=None, table=self.fit.table(geometry, grid))
        return self._planning(profiles, made)

    def _planning(self, profiles: ProfileSet, found: ModelProfile) -> StepTable:
        table = planning_table(found, profiles.made, profiles.gpu)
        if profiles.unit is None:
            return table
        served = found.served or profiles.served
        return seen_table(table, profiles.unit, served, grant_s=found.grant_s)


def choose_costs(
    llms: Sequence[Llm], nodes: Sequence[GpuNode], catalog: ProfileCatalog | None,
    tables: Mapping[str, StepTable],
) -> Costs:  # fmt: skip
    """Every LLM with the best costs there are on these nodes; `tables` that LLMs name stay."""
    if catalog is not None:
        _check_nodes(nodes, catalog)
    chosen: list[Llm] = []
    named = dict(tables)
    sources: dict[ModelName, Source] = {}
    for llm in llms:
        if llm.profile is not None:
            sources[llm.name] = Source.MEASURED if llm.profile in tables else Source.SHIPPED
        elif catalog is None or llm.geometry is None:
            sources[llm.name] = Source.DATA_SHEET
        else:
            source, table = catalog.table(llm.geometry)
            if _could_run(llm, table, nodes):
                sources[llm.name], named[table.model] = source, table
                llm = replace(llm, profile=table.model)
            else:
                sources[llm.name] = Source.DATA_SHEET
        chosen.append(llm)
    return Costs(llms=tuple(chosen), tables=named, sources=sources)


def _could_run(llm: Llm, table: StepTable, nodes: Sequence[GpuNode]) -> bool:
    """Whether the table knows a tensor degree at which the LLM may run and its weights fit."""
    largest = max((node.memory for node in nodes), default=0)
    degrees = set(table.tensors).intersection(llm.allowed_tensor or table.tensors)
    return any(llm.weight_bytes <= degree * largest for degree in degrees)


def _check_nodes(nodes: Sequence[GpuNode], catalog: ProfileCatalog) -> None:
    others = sorted({node.gpu for node in nodes if node.gpu != catalog.gpu})
    if others:
        raise SpecError(
            f"profiles were measured on {catalog.gpu}, the nodes have "
            f"{', '.join(others)}; profile there, or plan without --profiles"
        )
