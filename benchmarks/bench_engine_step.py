"""Milliseconds of engine steps on this CPU, and what the wire adds to one.

    python benchmarks/bench_engine_step.py [--steps 200] [--batches 1 4 16]

In this process, one thread, the demo's Llama (4 layers, hidden 256, float32) over 16 KiB units:
decode steps by batch, prefill tokens per second by prompt length, then the time to encode and
decode a grant and its result. Steps are timed by the engine itself (`elapsed_ms`).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from engine_builders import BOTH, KnownModel, World, greedy, torch_host
from mux_cli.tiny_models import DEMO, write
from mux_core.engine import Grant, StepResult
from mux_runtime import wire
from mux_runtime.engines.host import EngineHost
from mux_runtime.kvpool.allocator import Owner

OWNER = Owner("bench", 1)


class Bench:
    """One host that is granted whatever it can use."""

    def __init__(self, model: KnownModel) -> None:
        self.world = World(units=4096, unit_bytes=16384)
        self.host: EngineHost = torch_host(model, self.world, BOTH)
        self.model = model
        self.steps = 0

    def step(self, budget: int = 4096) -> tuple[Grant, StepResult]:
        self.steps += 1
        geometry = self.host.geometry
        lease = self.world.allocator.lease(OWNER, geometry, 32)
        grant = Grant(step=self.steps, phases=BOTH, token_budget=budget, max_seqs=64, lease=lease)
        result = self.host.step(grant)
        self.world.allocator.free((*lease[result.used :], *result.freed), geometry)
        return grant, result

    def add(self, rid: str, length: int, outputs: int) -> None:
        tokens = tuple(token % 512 for token in range(length))
        self.host.add(rid, tokens, greedy(outputs), prompt_len=length)


def percentiles(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"p50 {ordered[len(ordered) // 2]:8.3f}  p99 {ordered[int(len(ordered) * 0.99)]:8.3f}"


def decode(model: KnownModel, batch: int, steps: int) -> None:
    bench = Bench(model)
    for index in range(batch):
        bench.add(str(index), 100, steps + 20)
    for _ in range(10):
        bench.step()
    times = [bench.step()[1].elapsed_ms for _ in range(steps)]
    print(f"decode   batch {batch:4}   ms {percentiles(times)}")


def prefill(model: KnownModel, length: int) -> None:
    bench = Bench(model)
    times = []
    for index in range(10):
        bench.add(str(index), length, 1)
        times.append(bench.step()[1].elapsed_ms)
    rate = length / (sorted(times)[5] / 1000)
    print(f"prefill  tokens {length:4}  ms {percentiles(times)}   tokens/s {rate:8.0f}")


def on_the_wire(model: KnownModel, batch: int) -> None:
    bench = Bench(model)
    for index in range(batch):
        bench.add(str(index), 100, 50)
    bench.step()
    grant, result = bench.step()
    sizes = len(wire.encode(wire.encode_grant(grant))), len(wire.encode(wire.encode_result(result)))
    there = _times(lambda: wire.decode_grant(_through_json(wire.encode_grant(grant))["grant"]))
    back = _times(lambda: wire.decode_result(_through_json(wire.encode_result(result))["result"]))
    print(f"wire     batch {batch:4}   grant {sizes[0]} bytes, ms {percentiles(there)}")
    print(f"wire     batch {batch:4}   result {sizes[1]} bytes, ms {percentiles(back)}")


def _through_json(message: wire.Message) -> wire.Message:
    decoded: wire.Message = json.loads(wire.encode(message)[4:])
    return decoded


def _times(call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(1000):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) * 1000)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = KnownModel("tiny-llama", write(DEMO["tiny-llama"], Path(folder) / "llama"))
        for batch in arguments.batches:
            decode(model, batch, arguments.steps)
        for length in (16, 128, 1024):
            prefill(model, length)
        on_the_wire(model, arguments.batches[-1])


if __name__ == "__main__":
    main()
