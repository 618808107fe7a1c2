"""Who starves beside small LLMs: one TP4 unit, 7B, 13B and two 30B, 161/337 tokens.

    python benchmarks/simulator/starvation.py [--seconds 600 --seeds 5]

Profile step times, nothing slows anything else. Isolated is the same LLM with the same arrivals
alone on that unit with the same shares. Once with drawn lengths on the KV that our estimator finds
in the unit, once with fixed lengths on the KV fraction that MuxServe's planner writes, whose
sequence caps bind.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from report import Table, progress, report
from runs import Measured, Traffic, Window, measure, run, window_arguments, window_of
from systems import System, llm, share_of, unit_system

from mux_core.estimator.memory import fixed_bytes, room_bytes
from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.unit import Ask, GroupKind
from mux_core.llm import Llm
from mux_core.placement import Share
from mux_core.simulator.lengths import LengthShape
from mux_core.simulator.measures import latency, offered, served
from mux_core.units import GIB, Bytes

LLMS = (
    llm("llm-0", "llama-7b", 2.14),
    llm("llm-1", "llama-13b", 1.65),
    llm("llm-2", "llama-30b", 1.56),
    llm("llm-3", "llama-30b", 1.48),
)
SHARES = (share_of(80, 30), share_of(90, 30), share_of(100, 30), share_of(100, 30))
WRITTEN_KV = 38.4 * GIB
"""(80 - 160/4 - 4*7.6)/80 of 4 x 80 GB: the fraction that MuxServe's planner writes."""
KIND = GroupKind(gpus=4, gpu="a100-80gb", memory=Bytes(80 * GIB))
FOUND_KV = room_bytes(KIND) - sum(fixed_bytes(one, KIND) for one in LLMS)
NO_CAPS = {"sequence_quota": False}


@dataclass(frozen=True, slots=True)
class Row:
    """A policy of the table; `bar`: served over offered, at most (starved) or at least."""

    label: str
    policy: str
    bar: str
    switches: Mapping[str, bool]
    quotas: bool = False
    free_shares: bool = False
    sm_percent: int | None = None


ROWS = (
    Row("adbs-released", "adbs-released", "a 30B < 0.6", {}),
    Row("adbs-released, no caps", "adbs-released", "", NO_CAPS),
    Row("adbs-fixed", "adbs-fixed", ">= 0.8", {}),
    Row("adbs-fixed, no caps", "adbs-fixed", ">= 0.98", NO_CAPS),
    Row("fcfs", "fcfs", "", {}),
    Row("roundrobin", "roundrobin", "", {}),
    Row("ours", "adbs", ">= 0.98", {}),
    Row("ours, SMs to 120 %", "adbs", ">= 0.98", {}, sm_percent=120),
    Row("ours, KV not lent", "adbs", ">= 0.8", {}, quotas=True),
    Row("ours, own shares", "adbs", ">= 0.98", {}, free_shares=True),
)


def own_shares() -> tuple[Share, ...]:
    """What our estimator chooses for these four on that unit."""
    found = QueueingUnits(enforce_slo=False).outcome(
        KIND, [Ask(llm=one, rate=one.demand.rate) for one in LLMS]
    )
    return tuple(member.share for member in found.members)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a table holds fixed."""

    title: str
    shape: LengthShape
    kv_bytes: float
    window: Window

    def system(self, row: Row, llms: Sequence[Llm], shares: Sequence[Share]) -> System:
        return unit_system(
            row.label, llms, shares, row.policy, kv_bytes=self.kv_bytes, quotas=row.quotas,
            sm_percent=row.sm_percent,
        )  # fmt: skip

    def traffic(self, llms: tuple[Llm, ...]) -> Traffic:
        return Traffic(llms=llms, shape=self.shape)

    def measured(self, row: Row) -> Measured:
        system = self.system(row, LLMS, shares_of(row))
        return measure(
            system, self.traffic(LLMS), self.window, switches=row.switches, interference=None
        )

    def isolated_ttft(self, row: Row, index: int) -> float:
        """Mean TTFT of one LLM alone on the unit, same arrivals and shares."""
        alone = (LLMS[index],)
        system = self.system(row, alone, (shares_of(row)[index],))
        runs = measure(system, self.traffic(alone), self.window, interference=None).runs
        found = latency(runs, alone[0].name, "ttft")
        assert found is not None
        return found.mean

    def slowest_steps(self, row: Row) -> tuple[float, ...]:
        """For each LLM the mean decode step of its slowest neighbour, in s; one seed."""
        record = run(
            self.system(row, LLMS, shares_of(row)), self.traffic(LLMS), self.window, 1,
            switches=row.switches, interference=None, spans_s=min(60.0, self.window.seconds),
        )  # fmt: skip
        steps: dict[str, list[float]] = {one.name: [] for one in LLMS}
        for span in record.spans:
            if span.phase == "decode":
                steps[span.model].append(span.end - span.begin)
        means = {name: float(np.mean(found)) if found else 0.0 for name, found in steps.items()}
        return tuple(max(means[o.name] for o in LLMS if o is not one) for one in LLMS)


def shares_of(row: Row) -> tuple[Share, ...]:
    return own_shares() if row.free_shares else SHARES


def table_of(setting: Setting) -> Table:
    table = Table(
        title=setting.title,
        columns=("policy", "served / offered", "bar", "mean TTFT s", "TTFT bar s", "held"),
    )
    for row in ROWS:
        progress(f"starvation, {setting.shape} lengths: {row.label}")
        runs = setting.measured(row).runs
        ratios = [served(runs, one.name) / offered(runs, one.name) for one in LLMS]
        ttfts = [found.mean for one in LLMS if (found := latency(runs, one.name, "ttft"))]
        bars: list[float] = []
        if row.policy == "adbs" and not row.quotas:
            alone = [setting.isolated_ttft(row, index) for index in range(len(LLMS))]
            steps = setting.slowest_steps(row)
            bars = [max(2 * a, a + s) for a, s in zip(alone, steps, strict=True)]
        table.add(row.label, shown(ratios, 2), row.bar or None, shown(ttfts, 3),
                  shown(bars, 3) if bars else None, verdict(row, ratios, ttfts, bars))  # fmt: skip
    return table


def shown(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    window_arguments(parser)
    args = parser.parse_args()
    window = window_of(args)
    title = "7B / 13B / 30B / 30B at 2.14 / 1.65 / 1.56 / 1.48 per s"
    found, written = (f"{size / GIB:.1f} GiB of KV" for size in (FOUND_KV, WRITTEN_KV))
    drawn = table_of(
        Setting(f"{title}, drawn lengths, {found}", LengthShape.SHAREGPT, FOUND_KV, window)
    )
    fixed = table_of(
        Setting(f"{title}, 161/337 tokens each, {written}", LengthShape.FIXED, WRITTEN_KV, window)
    )
    drawn.notes.append("TTFT bar: max(2 x isolated, isolated + one decode step of the slowest "
                       "neighbour). MuxServe's own log has the 30Bs at 0.16 / 0.14 per s with "
                       "2,647 / 2,638 s to the first token.")  # fmt: skip
    fixed.notes.append("With fixed lengths both 30Bs decode batches of one size in lockstep, so "
                       "their steps end together more often than chance would have it and the "
                       "released loop starves them less.")  # fmt: skip
    report(args, drawn, fixed)


def verdict(
    row: Row, ratios: Sequence[float], ttfts: Sequence[float], bars: Sequence[float]
) -> str | None:
    if not row.bar:
        return None
    if row.policy == "adbs-released":
        return "yes" if min(ratios[2:]) < 0.6 else "no"
    held = min(ratios) >= float(row.bar.removeprefix(">= "))
    held &= all(ttft <= bar for ttft, bar in zip(ttfts, bars, strict=False))
    return "yes" if held else "no"


if __name__ == "__main__":
    main()
