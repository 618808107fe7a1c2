"""Time to lease and to free one KV block (row), native and reference side by side.

    python benchmarks/bench_block_alloc.py [--rounds N]

A pool of 64 GiB in 16 KiB units (4 GiB for the tiny model) is half filled by three members with
rows freed here and there, then one row is leased and one random row freed, again and again. `full`
is the same with 99.9 % of the units taken, where no extent is left and gaps are searched.
Goal: 5 us for one block.
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import quantiles

from mux_core.engine import KVGeometry, Row, kv_geometry
from mux_runtime.kvpool.allocator import Allocator, Owner
from mux_runtime.kvpool.reference import ReferenceAllocator

GOAL_US = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A pool and how much of it is taken before timing."""

    name: str
    geometry: KVGeometry
    units: int
    taken: float


def geometry(layers: int, kv_heads: int, head_dim: int) -> KVGeometry:
    return kv_geometry(layers=layers, kv_heads=kv_heads, head_dim=head_dim, dtype="bfloat16",
                       unit_bytes=16384)  # fmt: skip


LARGE, TINY, ODD = geometry(32, 8, 128), geometry(4, 2, 64), geometry(40, 10, 128)
SETTINGS = [
    Setting(name="32 layers x 8 KV heads, half", geometry=LARGE, units=1 << 22, taken=0.5),
    Setting(name="32 layers x 8 KV heads, full", geometry=LARGE, units=1 << 22, taken=0.999),
    Setting(name="40 layers x 10 KV heads, half", geometry=ODD, units=1 << 22, taken=0.5),
    Setting(name="4 layers x 2 KV heads, half", geometry=TINY, units=1 << 18, taken=0.5),
    Setting(name="4 layers x 2 KV heads, full", geometry=TINY, units=1 << 18, taken=0.999),
]


def fill(pool: Allocator, setting: Setting, draw: random.Random) -> list[Row]:
    """Leases to three members until enough is taken, then frees a tenth and leases it again."""
    owners = [Owner(name, 1) for name in ("a", "b", "c")]
    wanted = int(setting.units * setting.taken) // setting.geometry.row_units
    rows: list[Row] = []
    for part in range(30):
        count = wanted // 30 + (wanted % 30 if part == 0 else 0)
        rows += pool.lease(owners[part % 3], setting.geometry, count)
    draw.shuffle(rows)
    again = rows[: len(rows) // 10]
    pool.free(again, setting.geometry)
    rows[: len(again)] = pool.lease(owners[0], setting.geometry, len(again))
    draw.shuffle(rows)
    return rows


def measure(pool: Allocator, setting: Setting, rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds of each lease and each free of one row."""
    draw, owner = random.Random(7), Owner("b", 1)
    rows = fill(pool, setting, draw)
    leases, frees = [], []
    for _ in range(rounds):
        pick = draw.randrange(len(rows))
        began = time.perf_counter_ns()
        leased = pool.lease(owner, setting.geometry, 1)
        between = time.perf_counter_ns()
        pool.free((rows[pick],), setting.geometry)
        ended = time.perf_counter_ns()
        rows[pick] = leased[0]
        leases.append((between - began) / 1000)
        frees.append((ended - between) / 1000)
    pool.audit()
    return leases, frees


def percentiles(samples: list[float]) -> tuple[float, float]:
    cuts = quantiles(samples, n=100)
    return cuts[49], cuts[98]


def report(setting: Setting, kind: Callable[[int], Allocator], rounds: int) -> None:
    pool = kind(setting.units)
    leases, frees = measure(pool, setting, rounds)
    (lease50, lease99), (free50, free99) = percentiles(leases), percentiles(frees)
    verdict = "meets" if max(lease99, free99) <= GOAL_US else "above"
    print(f"{setting.name:31} {pool.kind:10} {lease50:8.2f} {lease99:8.2f} "
          f"{free50:8.2f} {free99:8.2f}   {verdict}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20_000)
    rounds = parser.parse_args().rounds
    kinds: list[tuple[Callable[[int], Allocator], int]] = [(ReferenceAllocator, rounds // 20)]
    if find_spec("mux_native"):
        from mux_runtime.kvpool.native import NativeAllocator

        kinds.insert(0, (NativeAllocator, rounds))
    print(f"{'us per row':42} {'lease50':>8} {'lease99':>8} {'free50':>8} {'free99':>8}   "
          f"p99 {GOAL_US:.0f} us")  # fmt: skip
    for setting in SETTINGS:
        for kind, share in kinds:
            report(setting, kind, share)


if __name__ == "__main__":
    main()
