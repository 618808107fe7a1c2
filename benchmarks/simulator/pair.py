"""65B at 1/s (778/251 tokens) beside 30B at 8/s (128/126 tokens) on one TP4 unit.

    python benchmarks/simulator/pair.py [--seconds 600 --seeds 5]

The profile measured prompts of up to 512 tokens; 778 lie on the line through 256 and 512.
"""

import argparse
from dataclasses import dataclass, replace

from report import Table, progress, report, shown
from runs import Traffic, Window, measure, window_arguments, window_of
from systems import llm, unit_system

from mux_core.estimator.memory import fixed_bytes, room_bytes
from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.unit import Ask, GroupKind
from mux_core.llm import Demand
from mux_core.placement import Share
from mux_core.simulator.intervals import interval
from mux_core.simulator.lengths import LengthShape
from mux_core.simulator.measures import latency, served
from mux_core.units import GIB, Bytes

SMALL = replace(
    llm("llama-30b", "llama-30b", 8.0),
    demand=Demand(rate=8.0, prompt_tokens=128, output_tokens=126),
)
LARGE = replace(
    llm("llama-65b", "llama-65b", 1.0),
    demand=Demand(rate=1.0, prompt_tokens=778, output_tokens=251),
)
LLMS = (SMALL, LARGE)
KIND = GroupKind(gpus=4, gpu="a100-80gb", memory=Bytes(80 * GIB))
KV_BYTES = room_bytes(KIND) - sum(fixed_bytes(one, KIND) for one in LLMS)
TOTAL_BAR, LARGE_BAR = 7.48, 0.35
THEIRS = {"fcfs": (3.504, 0.419), "roundrobin": (5.466, 0.348), "adbs-released": (7.354, 0.126)}
"""(30B, 65B) requests/s of MuxServe's own notebook."""


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    policy: str
    sm_percent: int | None = None


ROWS = (
    Row("fcfs", "fcfs"),
    Row("roundrobin", "roundrobin"),
    Row("adbs-released", "adbs-released"),
    Row("adbs-fixed", "adbs-fixed"),
    Row("ours", "adbs"),
    Row("ours, SMs to 120 %", "adbs", 120),
)


def own_shares() -> tuple[Share, ...]:
    """What our estimator chooses for the two."""
    asks = [Ask(llm=one, rate=one.demand.rate) for one in LLMS]
    return tuple(member.share for member in QueueingUnits().outcome(KIND, asks).members)


def table_of(window: Window) -> Table:
    shares = own_shares()
    table = Table(
        title="65B at 1/s beside 30B at 8/s on 4 GPUs, requests/s served",
        columns=("policy", "30B", "65B", "total", "TTFT s 30B / 65B", "theirs 30B / 65B", "bar"),
    )
    for row in ROWS:
        progress(f"pair: {row.label}")
        system = unit_system(
            row.label, LLMS, shares, row.policy, kv_bytes=KV_BYTES, sm_percent=row.sm_percent
        )
        runs = measure(system, Traffic(llms=LLMS, shape=LengthShape.FIXED), window).runs
        rates = [interval(lambda r, m=one.name: served(r, m), runs) for one in LLMS]
        total = sum(rate.value for rate in rates)
        waits = [found.mean for one in LLMS if (found := latency(runs, one.name, "ttft"))]
        theirs = THEIRS.get(row.policy)
        verdict = None
        if row.policy == "adbs":
            verdict = "held" if total >= TOTAL_BAR and rates[1].value >= LARGE_BAR else "missed"
        table.add(row.label, shown(rates[0]), shown(rates[1]), total,
                  " / ".join(f"{wait:.2f}" for wait in waits),
                  f"{theirs[0]:.2f} / {theirs[1]:.2f}" if theirs else None, verdict)  # fmt: skip
    table.notes.append(f"Bar: total >= {TOTAL_BAR} with the 65B at >= {LARGE_BAR}. Decode shares "
                       f"{shares[0].decode} / {shares[1].decode} %, prefill 100 %, fixed lengths, "
                       f"{KV_BYTES / GIB:.0f} GiB of KV; prefills beyond 512 tokens on the line "
                       "through the last two measured lengths.")  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    window_arguments(parser)
    args = parser.parse_args()
    report(args, table_of(window_of(args)))


if __name__ == "__main__":
    main()
