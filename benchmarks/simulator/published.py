"""MuxServe's own measurements replayed: its groupings, requests, scheduler and metrics.

    python benchmarks/simulator/published.py [--cases 2.1/0.5,chat800] [--seeds 5]

Every LLM gets the stored number of requests, Poisson at its rate (ChatLMSYS: drawn evenly over the
span), and the run goes on until all are served. Throughput of an LLM is its requests by its last
completion. What counts is the ratio of MuxServe to its baselines, theirs beside ours.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from report import Table, progress, report
from runs import run_arrivals, window_arguments
from systems import System, make_system, nodes, published, share_of

from mux_core.data import read_text
from mux_core.estimator.muxserve import (
    ACTIVATION_GB,
    GPU_GB,
    MuxServeEstimator,
    Tenant,
    reference_model,
)
from mux_core.estimator.unit import GroupKind
from mux_core.llm import Llm
from mux_core.placement import GpuGroup, KvQuota, Member, Placement, Share, Unit
from mux_core.planners.released import DEBIT_GB
from mux_core.planners.replay import PREFILL_PERCENT
from mux_core.planning import PlacementProblem
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.kv import KvRule, Llms
from mux_core.simulator.latency_base import latency_bases
from mux_core.simulator.lengths import LengthShape, lengths_of
from mux_core.simulator.measures import makespan_throughput, request_weighted, whole_rate_weighted
from mux_core.simulator.record import RequestLog
from mux_core.units import GIB, Bytes, ModelName, UnitId

POLICIES = {"muxserve": "adbs-released", "spatial": "adbs-released", "temporal": "fcfs"}
UNTIL_S = 20_000.0
FAR = 0.25
CHAT_TOKENS = (100.172, 261.314)
"""Mean prompt and output of the ChatLMSYS requests."""
SLO = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run by their metrics: throughput on their axis, % within SLO scale 8, mean TTFT."""

    axis: float
    slo: float
    ttft_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One mesh of a stored run. `kv_fraction`: of its memory; None as the planner writes it."""

    gpus: int
    shares: Mapping[ModelName, Share]
    kv_fraction: float | None = None


def groups_of(stored: dict[str, object], llms: Sequence[Llm], system: str) -> list[Group]:
    """The groups of a stored run, shares as executed, or as the planner would write them."""
    if "units" not in stored:
        found = stored["spatial" if system == "spatial" else "muxserve"]
        assert isinstance(found, list)
        return [
            Group(
                gpus=unit["gpus"],
                kv_fraction=unit["kv_fraction"],
                shares={
                    ModelName(name): share_of(100, 90) if system == "temporal" else share_of(*pair)
                    for name, pair in unit["shares"].items()
                },
            )
            for unit in found
        ]
    units = stored["units"]
    assert isinstance(units, list)
    weights = sum(reference_model(llm.profile or "").weights_gb for llm in llms)
    occupied = (weights + ACTIVATION_GB * len(llms)) / (GPU_GB * sum(n.gpus for n in nodes()))
    return [
        Group(
            gpus=unit["gpus"],
            shares={
                llms[i].name: _share(llms[i], unit["gpus"], system, occupied) for i in unit["llms"]
            },
        )
        for unit in units
    ]


def _share(llm: Llm, gpus: int, system: str, occupied: float) -> Share:
    """What its planner writes for this LLM on that many GPUs; `occupied`: part of all memory."""
    if system == "temporal":
        return share_of(100, 90)
    model = reference_model(llm.profile or "")
    tenant = Tenant(name=llm.name, model=model, rate=llm.demand.rate)
    decode = MuxServeEstimator().candidate(tenant, gpus, occupied * GPU_GB * gpus).percent
    return share_of(PREFILL_PERCENT.get(model.rate_scale, 100), decode)


def system_of(name: str, stored: dict[str, object], llms: tuple[Llm, ...]) -> System:
    """Its stored grouping under its scheduler."""
    if name == "spatial" and "units" in stored:
        return make_system("spatial", llms)
    cluster, units, fractions = nodes(), [], {}
    free = {node.name: list(range(node.gpus)) for node in cluster}
    found = sorted(groups_of(stored, llms, name), key=lambda group: -group.gpus)
    rates = {llm.name: llm.demand.rate for llm in llms}
    for index, group in enumerate(found):
        node = next(n for n, slots in free.items() if len(slots) >= group.gpus)
        taken, free[node] = free[node][: group.gpus], free[node][group.gpus :]
        limit = Bytes(80 * GIB * group.gpus)
        members = tuple(
            Member(
                model=model,
                replica=0,
                tensor=group.gpus,
                share=share,
                kv=KvQuota(guaranteed=Bytes(0), limit=limit),
                rate=rates[model],
            )
            for model, share in group.shares.items()
        )
        unit = Unit(id=UnitId(f"u{index:02d}"), group=GpuGroup(node=node, gpus=tuple(taken)),
                    members=())  # fmt: skip
        units.append(unit.with_members(members))
        fractions[unit.id] = group.kv_fraction
    return System(
        name=name,
        problem=PlacementProblem(now=0.0, nodes=cluster, llms=llms),
        placement=Placement(units=tuple(units)),
        policy=POLICIES[name],
        kv=_kv(fractions),
    )


def _kv(fractions: Mapping[UnitId, float | None]) -> KvRule:
    def rule(unit: Unit, kind: GroupKind, llms: Llms) -> float:
        fraction = fractions[unit.id]
        if fraction is None:
            weights = sum(llms[m.model].weight_bytes for m in unit.members) / GIB / kind.gpus
            fraction = (80 - weights - DEBIT_GB * len(unit.members)) / 80
        return fraction * kind.gpus * kind.memory

    return rule


def requests_of(stored: dict[str, object], llms: Sequence[Llm], seed: int) -> Iterator[Arrival]:
    """The stored numbers of requests, drawn anew for every seed."""
    counts, span = stored["requests"], stored.get("span_s")
    found = []
    for index, llm in enumerate(llms):
        rng = np.random.default_rng([seed, index])
        number = counts[llm.name] if isinstance(counts, dict) else counts[index]  # type: ignore[index]
        prompt, output = CHAT_TOKENS if span else (161.0, 337.0)
        lengths = lengths_of(
            LengthShape.SHAREGPT, prompt=prompt, output=output, longest=2048, subject=llm.name
        )
        times = (
            np.sort(rng.uniform(0, float(str(span)), number))
            if span
            else np.cumsum(rng.exponential(1 / llm.demand.rate, number))
        )
        prompts, outputs = lengths.draw(rng.random((number, 2)))
        found += [
            Arrival(at, llm.name, int(p), int(o))
            for at, p, o in zip(times.tolist(), prompts, outputs, strict=True)
        ]
    return iter(sorted(found, key=lambda arrival: arrival.at))


def outcome_of(
    system: System, stored: dict[str, object], llms: tuple[Llm, ...], seed: int
) -> Outcome:
    record = run_arrivals(system, requests_of(stored, llms, seed), seconds=UNTIL_S)
    throughput = {llm.name: makespan_throughput(record.requests[llm.name]) for llm in llms}
    logs = record.requests
    if stored.get("span_s"):
        axis = request_weighted(throughput, {m: len(log.arrived) for m, log in logs.items()})
    else:
        axis = whole_rate_weighted(throughput, {llm.name: llm.demand.rate for llm in llms})
    waits = np.concatenate([log.first - log.arrived for log in logs.values()])
    return Outcome(axis, _within(logs, llms), float(np.nanmean(waits)))


def _within(logs: Mapping[ModelName, RequestLog], llms: Sequence[Llm]) -> float:
    """Per cent of requests within SLO scale 8, end to end."""
    met = asked = 0
    for name, base in latency_bases(llms, nodes(), {}).items():
        log = logs[name]
        met += int(
            (log.finished - log.arrived <= SLO * base.end_to_end(log.prompt, log.output)).sum()
        )
        asked += len(log.arrived)
    return 100 * met / asked


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(*(
        float(np.mean([getattr(o, name) for o in outcomes])) for name in ("axis", "slo", "ttft_s")
    ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    window_arguments(parser)
    parser.add_argument("--cases", default="", help="of the published ones, by comma; all")
    args = parser.parse_args()
    data = json.loads(read_text("muxserve_published.json"))
    stored = data["synthetic"] | data["chatlmsys"]
    table = Table(
        title="MuxServe's published ratios (theirs / ours)",
        columns=("case", "MuxServe, their axis", "over spatial", "over temporal",
                 "SLO 8 or TTFT: MuxServe", "spatial", "temporal", "off by"),
    )  # fmt: skip
    for case in args.cases.split(",") if args.cases else list(stored):
        found = {}
        for name in POLICIES:
            progress(f"published {case}: {name}")
            llms = published()[case]
            system = system_of(name, stored[case], llms)
            seeds = range(1, args.seeds + 1)
            found[name] = mean([outcome_of(system, stored[case], llms, seed) for seed in seeds])
        _add(table, case, stored[case]["measured"], found)
    table.notes.append(
        f"`off by`: ours over theirs of the two ratios, those beyond {FAR:.0%} marked. Synthetic "
        "cases: % of requests within end-to-end SLO scale 8; ChatLMSYS: mean TTFT in s."
    )
    table.notes.append(
        "Where it is marked, one LLM makes the difference: the hottest 7B on 8 GPUs, which carries "
        "most of their axis. They measured 18 to 25 requests/s and about 40 ms per token; the "
        "profile's step at its batch of over 200, plus the 0.1 ms per sequence that MuxServe's "
        "planner adds, plus the prefills beside it, is 60 ms here."
    )
    report(args, table)


def _add(table: Table, case: str, theirs: Mapping[str, dict[str, float]],
         ours: Mapping[str, Outcome]) -> None:  # fmt: skip
    def pair(name: str) -> str:
        if "slo8" in theirs[name]:
            return f"{theirs[name]['slo8']:.0f} / {ours[name].slo:.0f} %"
        return f"{theirs[name]['ttft_s']:.1f} / {ours[name].ttft_s:.1f} s"

    ratios, offs = [], []
    for name in ("spatial", "temporal"):
        published_ratio = theirs["muxserve"]["axis"] / theirs[name]["axis"]
        ratio = ours["muxserve"].axis / ours[name].axis
        if not theirs[name].get("comparable", True):
            ratios.append(f"not comparable / {ratio:.2f}")
            continue
        ratios.append(f"{published_ratio:.2f} / {ratio:.2f}")
        off = ratio / published_ratio - 1
        offs.append(f"**{off:+.0%}**" if abs(off) > FAR else f"{off:+.0%}")
    axis = f"{theirs['muxserve']['axis']:.1f} / {ours['muxserve'].axis:.1f}"
    table.add(case, axis, *ratios, *(pair(name) for name in POLICIES), ", ".join(offs))


if __name__ == "__main__":
    main()
