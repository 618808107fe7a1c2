"""`muxserve simulate --report`: gathers what the page tells and writes it."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from mux_cli.plan import plan_for
from mux_cli.plan_document import units_document
from mux_cli.report_page import Report, report_page
from mux_cli.simulate_runs import Scenario
from mux_cli.simulate_views import UnitView
from mux_cli.workload import write_whole
from mux_cli.workload_file import Workload
from mux_core.costmodel.sources import Source
from mux_core.errors import SpecError
from mux_core.units import ModelName

STANDS_ON = {
    Source.MEASURED: "were measured by muxserve profile",
    Source.FITTED: "are fitted to what muxserve profile measured of other models",
    Source.DATA_SHEET: "are computed from the model's shape and the GPU's data sheet",
    Source.SHIPPED: "are MuxServe's measurements on A100-80GB",
}
WHOLE_GPUS = "spatial-replicas"
"""The strategy that shares nothing: whole GPUs per replica, as few as meet the demand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What there is to tell of a simulation. `sources`: what each LLM's step times stand on."""

    document: Mapping[str, Any]
    view: UnitView | None
    scenario: Scenario
    workload: Workload
    sources: Mapping[ModelName, Source]


def write_report(args: argparse.Namespace, told: Told) -> None:
    """Writes the page to `args.report`. Raises SpecError where it cannot be written."""
    page = report_page(
        Report(
            document=told.document,
            units=units_document(told.scenario.placement),
            view=told.view,
            whole_gpus=_whole_gpus(args, told),
            assumptions=_assumptions(told),
            command=shlex.join(["muxserve", *sys.argv[1:]]),
            version=metadata.version("muxserve-operator"),
        )
    )
    write_whole(args.report, page)


def _whole_gpus(args: argparse.Namespace, told: Told) -> int | None:
    """GPUs that the same demand takes unshared; None where that cannot be or is this plan."""
    if told.document["strategy"] == WHOLE_GPUS:
        return None
    alone = argparse.Namespace(**{**vars(args), "estimator": None, "switch": [], "gpus": None})
    try:
        found = plan_for(alone, told.workload, strategy=WHOLE_GPUS).plan.prediction
    except SpecError:
        return None
    return found.gpus_used if found.worst_ratio >= 1.0 else None


def _assumptions(told: Told) -> Sequence[str]:
    document, window = told.document, told.scenario.window
    found = [
        f"Figures are of {window.seconds:g} s after a warm-up of {window.warmup:g} s; the load "
        f"went on for {window.tail:g} s more so that the last requests could end. "
        f"{document['seeds']} independent run{'s' if document['seeds'] > 1 else ''}.",
        *_requests(told.scenario),
        *_times(told.sources),
        "How much steps slow each other down on one GPU is assumed, not measured.",
        f"Plans by strategy {document['strategy']}, requests scheduled by policy "
        f"{document['policy']}: the functions that the product runs, where it is ours.",
        "Not modelled: HTTP, tokenizers, failures, cancelled requests, prefix caches, and the "
        "time between a step's end and the next one's start.",
    ]
    return [*found, *document["notes"]]


def _requests(scenario: Scenario) -> Sequence[str]:
    if not scenario.traffic.seeded:
        return [f"Requests come from a trace of {len(scenario.traffic.trace)} requests."]
    bursty = [s.model for s in scenario.traffic.streams if s.burstiness != 1]
    arrivals = f"except {', '.join(bursty)}, as bursty as the workload says" if bursty else ""
    return [
        " ".join(filter(None, ("Requests of each model arrive at random (Poisson)", arrivals)))
        + ("; rates change during the run" if scenario.traffic.moves else "")
        + ". Token lengths vary around the means that the workload states."
    ]


def _times(sources: Mapping[ModelName, Source]) -> Sequence[str]:
    """Where step times come from, a sentence per kind."""
    by_kind: dict[Source, list[str]] = {}
    for model, source in sources.items():
        by_kind.setdefault(source, []).append(model)
    return [
        f"Step times of {'all models' if len(by_kind) == 1 else ', '.join(by_kind[source])} "
        f"{STANDS_ON[source]}."
        for source in Source
        if source in by_kind
    ]
