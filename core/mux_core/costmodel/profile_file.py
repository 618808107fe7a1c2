"""The file in which measured step times travel: written by `muxserve profile`, read here.

JSON, version 1:

    {"format": "muxserve-profile", "version": 1, "model": "qwen3-4b", "gpu": "h100-80gb",
     "rows": [{"tensor": 1, "percent": 100, "batch": 8, "tokens": 256,
               "prefill_ms": 41.2, "decode_ms": 11.7}, ...]}

A phase that was not measured is left out or null. `percent` is the SM share in force.

Version 6 holds several models measured on one device, what else was timed there, and where and by
what it was made; `load_profiles` reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from mux_core.costmodel.profile_set import (
    MadeOn,
    ModelProfile,
    PairStep,
    PairTimes,
    ProfileSet,
    Served,
    Stretch,
    UnitCost,
    Work,
)
from mux_core.costmodel.table import StepRow, StepTable, step_table
from mux_core.engine import Phase
from mux_core.errors import SpecError
from mux_core.llm import Dtype, ModelGeometry

FORMAT: Final = "muxserve-profile"
VERSION: Final = 1
SET_VERSION: Final = 6
MOST_ROWS: Final = 1_000_000
_WORK: Final = ("step", "token", "request")


def dump_table(table: StepTable) -> str:
    """The text of a profile file."""
    document = {"format": FORMAT, "version": VERSION, "model": table.model, "gpu": table.gpu,
                "rows": _rows_document(table)}  # fmt: skip
    return json.dumps(document, indent=1) + "\n"


def dump_profiles(profiles: ProfileSet) -> str:
    """The text of a profile file of several models; times in milliseconds."""
    unit = profiles.unit
    document = {
        "format": FORMAT, "version": SET_VERSION, "gpu": profiles.gpu,
        "made": asdict(profiles.made), "left_out": list(profiles.left_out),
        "models": [_model_document(model) for model in profiles.models],
        "unit": None if unit is None else {
            **_work_document(unit), "scheduler": _work_document(unit.scheduler),
            "client": _work_document(unit.client), "cores_used": unit.cores_used},
        "pairs": [
            {"sides": [asdict(side) for side in pair.sides],
             "alone_ms": [s * 1000 for s in pair.alone_s],
             "together_ms": [s * 1000 for s in pair.together_s]}
            for pair in profiles.pairs
        ],
    }  # fmt: skip
    return json.dumps(document, indent=1) + "\n"


def _model_document(model: ModelProfile) -> dict[str, Any]:
    return {
        "model": model.name, "geometry": asdict(model.geometry), "grant_ms": model.grant_s * 1000,
        "handoff_ms": model.handoff_s * 1000, "host_bytes": model.host_bytes,
        "served": None if model.served is None else {
            "decode": [{"batch": batch, "times": times} for batch, times in model.served.decode],
            "prefill": _stretch_document(model.served.prefill),
            "together": model.served.together},
        "rows": _rows_document(model.table),
    }  # fmt: skip


def _stretch_document(stretch: Stretch) -> dict[str, float]:
    return {"times": stretch.times, "longer_ms": stretch.longer_s * 1000}


def _rows_document(table: StepTable) -> list[dict[str, Any]]:
    return [
        {
            "tensor": row.tensor,
            "percent": row.percent,
            "batch": row.batch,
            "tokens": row.tokens,
            "prefill_ms": None if row.prefill_s is None else row.prefill_s * 1000,
            "decode_ms": None if row.decode_s is None else row.decode_s * 1000,
        }
        for found in table.cells.values()
        for row in found
    ]


def load_table(text: str, *, subject: str) -> StepTable:
    """The table of a profile file of one model. SpecError names `subject`, the value, the fix."""
    document = _document(text, subject)
    if document["version"] == SET_VERSION:
        models = load_profiles(text, subject=subject).models
        if len(models) != 1:
            raise SpecError(f"{subject}: holds {len(models)} models where one is named; give it to "
                            "`muxserve plan --profiles`, which chooses by shape")  # fmt: skip
        return models[0].table
    return _table(document, str(document.get("gpu", "")), subject)


def _work_document(work: UnitCost | Work) -> dict[str, float]:
    return {f"{name}_ms": getattr(work, f"{name}_s") * 1000 for name in _WORK}


def _work(document: Mapping[str, Any]) -> dict[str, float]:
    return {f"{name}_s": document[f"{name}_ms"] / 1000 for name in _WORK}


def load_profiles(text: str, *, subject: str) -> ProfileSet:
    """All of a profile file. Raises SpecError naming `subject`, the value and the fix."""
    document = _document(text, subject)
    if document["version"] != SET_VERSION:
        raise SpecError(f"{subject}: version {document['version']} says neither device nor shape; "
                        "write it anew with muxserve profile")  # fmt: skip
    try:
        gpu, unit = str(document["gpu"]), document["unit"]
        return ProfileSet(
            gpu=gpu, made=MadeOn(**document["made"]), left_out=tuple(document["left_out"]),
            models=tuple(_model(found, gpu, subject) for found in document["models"]),
            unit=None if unit is None else UnitCost(
                **_work(unit), scheduler=Work(**_work(unit["scheduler"])),
                client=Work(**_work(unit["client"])), cores_used=float(unit["cores_used"])),
            pairs=tuple(_pair(found) for found in document["pairs"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(f"{subject}: is damaged ({error!r}); write it anew with muxserve profile"
                        ) from error  # fmt: skip


def _document(text: str, subject: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{subject}: is not JSON ({error}); write it anew with muxserve profile"
                        ) from error  # fmt: skip
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SpecError(f"{subject}: is no profile; its format must be {FORMAT!r}")
    if document.get("version") not in (VERSION, SET_VERSION):
        raise SpecError(f"{subject}: version {document.get('version')!r}; this release reads "
                        f"versions {VERSION} and {SET_VERSION}; write it anew with muxserve profile"
                        )  # fmt: skip
    return document


def _table(document: Mapping[str, Any], gpu: str, subject: str) -> StepTable:
    rows = document.get("rows")
    if not isinstance(rows, list) or not rows or len(rows) > MOST_ROWS:
        raise SpecError(f"{subject}: rows must be a list of 1 to {MOST_ROWS} measurements")
    found = [_row(row, f"{subject}: rows[{index}]") for index, row in enumerate(rows)]
    table = step_table(str(document.get("model", "")), gpu, found)
    for tensor in table.tensors:
        if 100 not in table.percents(tensor):
            raise SpecError(f"{subject}: tensor {tensor} was not measured at 100% of the SMs; "
                            "measure that share too")  # fmt: skip
    return table


def _model(document: Mapping[str, Any], gpu: str, subject: str) -> ModelProfile:
    shape = document["geometry"]
    return ModelProfile(
        name=str(document["model"]),
        geometry=ModelGeometry(**{**shape, "dtype": Dtype(shape["dtype"])}),
        table=_table(document, gpu, f"{subject}: model {document['model']}"),
        grant_s=document["grant_ms"] / 1000, handoff_s=document["handoff_ms"] / 1000,
        host_bytes=int(document["host_bytes"]),
        served=None if document["served"] is None else _served(document["served"]),
    )  # fmt: skip


def _served(document: Mapping[str, Any]) -> Served:
    return Served(
        decode=tuple((float(one["batch"]), float(one["times"])) for one in document["decode"]),
        prefill=_stretch(document["prefill"]), together=bool(document["together"]),
    )  # fmt: skip


def _stretch(document: Mapping[str, Any]) -> Stretch:
    return Stretch(times=float(document["times"]), longer_s=document["longer_ms"] / 1000)


def _pair(document: Mapping[str, Any]) -> PairTimes:
    one, other = (PairStep(**{**side, "phase": Phase(side["phase"])})
                  for side in document["sides"])  # fmt: skip
    (alone_a, alone_b), (a, b) = document["alone_ms"], document["together_ms"]
    return PairTimes(sides=(one, other), alone_s=(alone_a / 1000, alone_b / 1000),
                     together_s=(a / 1000, b / 1000))  # fmt: skip


def _row(row: object, subject: str) -> StepRow:
    if not isinstance(row, dict):
        raise SpecError(f"{subject}: {row!r}; an object is needed")
    percent = _whole(row, "percent", subject)
    if percent > 100:
        raise SpecError(f"{subject}: percent {percent}; 1 to 100")
    return StepRow(
        tensor=_whole(row, "tensor", subject),
        percent=percent,
        batch=_whole(row, "batch", subject),
        tokens=_whole(row, "tokens", subject),
        prefill_s=_seconds(row, "prefill_ms", subject),
        decode_s=_seconds(row, "decode_ms", subject),
    )


def _whole(row: Mapping[str, Any], key: str, subject: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{subject}: {key} {value!r}; a whole number of at least 1")
    return value


def _seconds(row: Mapping[str, Any], key: str, subject: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise SpecError(f"{subject}: {key} {value!r}; milliseconds above 0")
    return value / 1000
