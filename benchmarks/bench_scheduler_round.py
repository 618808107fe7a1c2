"""How long one unit scheduler decision takes: 16 LLMs, 256 requests, one core.

    python benchmarks/bench_scheduler_round.py [--rounds N]

Prints p50 and p99 of `adbs_round` alone, in microseconds; goal: 50. Wall time suffers from
whatever else the machine does, CPU time does not. The loads change from round to round as steps
end and start, so that most rounds grant one or two steps and hold the rest.
"""

import argparse
import random
import time
from dataclasses import replace

from mux_core.adbs import Limits, MemberLoad, Turn, UnitLoad, adbs_round
from mux_core.engine import Phase

LLMS, REQUESTS = 16, 256


def loads(rng: random.Random) -> list[MemberLoad]:
    share = REQUESTS // LLMS
    out = []
    for index in range(LLMS):
        waiting = rng.randrange(share + 1)
        running = share - waiting
        out.append(MemberLoad(
            model=f"llm-{index:02}", prefill_percent=rng.choice((60, 80, 100)),
            decode_percent=rng.choice((10, 20, 30)), waiting=waiting, waiting_tokens=waiting * 161,
            head_rows=3, batch_rows=3 * waiting, decoding=running, decode_rows=running // 4,
            running=running, row_units=512, floor=4096, quota=65536, used=running * 512,
        ))  # fmt: skip
    return out


def run(rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds of every decision, sorted: wall time, CPU time."""
    rng = random.Random(0)
    members = loads(rng)
    flying: dict[tuple[str, Phase], int] = {}
    turn, limits = Turn(), Limits(sm_percent=120)
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(rounds):
        now = tuple(
            replace(m, prefill_idle=(m.model, Phase.PREFILL) not in flying,
                    decode_idle=(m.model, Phase.DECODE) not in flying)
            for m in members
        )  # fmt: skip
        load = UnitLoad(members=now, free_units=500_000, sm_in_use=sum(flying.values()), turn=turn)
        begin, begin_cpu = time.perf_counter_ns(), time.thread_time_ns()
        outcome = adbs_round(load, limits)
        cpu.append((time.thread_time_ns() - begin_cpu) / 1000)
        wall.append((time.perf_counter_ns() - begin) / 1000)
        turn = outcome.turn
        flying |= {(g.model, g.phase): g.percent for g in outcome.grants}
        if flying:
            del flying[rng.choice(sorted(flying))]
        if rng.random() < 0.05:
            members = loads(rng)
    return sorted(wall), sorted(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20_000)
    print(f"one decision, {LLMS} LLMs, {REQUESTS} requests:")
    for name, micros in zip(("wall", "CPU"), run(parser.parse_args().rounds), strict=True):
        p50, p99 = micros[len(micros) // 2], micros[len(micros) * 99 // 100]
        print(f"  {name:4} p50 {p50:.1f} us, p99 {p99:.1f} us")


if __name__ == "__main__":
    main()
