"""One engine host at a share: the torch engine behind its own interface, told what to run.

Steps are timed by the engine itself (`elapsed_ms`: grant received until the device is idle). Rows
of a decode hold whatever the memory holds: a step takes as long for any content.
"""

import argparse
import mmap
import time
from pathlib import Path
from typing import Any

import record  # noqa: F401 (finds our sources)
from shares import serve

from mux_core.engine import Grant, KVHandoff, Phase, Sampling, StepResult
from mux_runtime.engines.host import WeightsHandle
from mux_runtime.engines.torch.start import Settings, TorchStart
from mux_runtime.kvpool.allocator import Owner, open_allocator
from mux_runtime.kvpool.client import Arena, Role, WeightArena

UNIT_BYTES = 16384
OWNER = Owner("bench", 1)
ENDLESS = Sampling(max_tokens=1 << 30, temperature=0.0, ignore_eos=True)


class FilePool:
    """The pool owner's protocol over files: weights are loaded by the first process of a script."""

    def __init__(self, folder: Path, kv_bytes: int) -> None:
        self._folder, self._kv_bytes = folder, kv_bytes

    def map_kv(self) -> Arena:
        return Arena(buffer=mmap.mmap(-1, self._kv_bytes), nbytes=self._kv_bytes)

    def attach(self, name: str, nbytes: int) -> WeightArena:
        file, sealed = self._folder / f"{name}.arena", self._folder / f"{name}.sealed"
        role = Role.READER if sealed.exists() else Role.LOADER
        with file.open("r+b" if file.exists() else "w+b") as opened:
            opened.truncate(nbytes)
            return WeightArena(
                buffer=mmap.mmap(opened.fileno(), nbytes),
                nbytes=nbytes,
                name=name,
                role=role,
                digest=sealed.read_text() if sealed.exists() else "",
            )

    def seal(self, name: str, digest: str) -> None:
        (self._folder / f"{name}.sealed").write_text(digest)


class Host:
    """The engine, and a lease of whatever a step may need."""

    def __init__(self, args: argparse.Namespace) -> None:
        from mux_runtime.engines.torch.engine import TorchEngine

        start = TorchStart(Settings(
            model_dir=args.model, pool="", arena=args.model.name, phases=frozenset(Phase),
            unit_bytes=UNIT_BYTES, device=args.device, private_kv=True, threads=1,
        ))  # fmt: skip
        self.engine = TorchEngine(start)
        self.vocab = start.config.geometry.vocab
        self.shape = start.geometry
        self.allocator = open_allocator(args.kv_bytes // UNIT_BYTES)
        self.steps = 0
        self.requests: list[str] = []
        self.args = args

    def open(self) -> dict[str, Any]:
        begun = time.monotonic()
        handle = WeightsHandle(model_dir=str(self.args.model), arena=self.args.model.name)
        self.engine.open(FilePool(self.args.model.parent, self.args.kv_bytes), handle,
                         self.args.device)  # fmt: skip
        return {"open_s": time.monotonic() - begun, **self.stats()}

    def stats(self) -> dict[str, Any]:
        stats = self.engine.stats()
        return {"sms": stats.sms, "device_bytes": stats.device_bytes, "rss": stats.peak_bytes}

    def prefill(self, tokens: int, reps: int) -> list[float]:
        """Seconds of whole prompts, one at a time."""
        return [self._prompt(tokens, index) for index in range(-2, reps)][2:]

    def decode(self, batch: int, context: int, reps: int) -> list[float]:
        """Seconds of steps of `batch` requests that read about `context` tokens each."""
        self._adopt(batch, context)
        try:
            return [self._step(batch, batch) / 1000 for _ in range(reps + 3)][3:]
        finally:
            self._clear()

    def fits(self, batch: int, context: int) -> bool:
        """Whether the KV of such a batch fits, two rows each left to grow."""
        units = batch * (self.shape.rows_for(context) + 2) * self.shape.row_units
        return units <= self.allocator.free_units

    def loop(self, kind: str, batch: int, tokens: int, seconds: float) -> list[float]:
        """Seconds of the steps that were run for so long, one after the other."""
        end = time.monotonic() + seconds
        times = []
        if kind == "decode":
            self._adopt(batch, tokens)
        index = 0
        while time.monotonic() < end:
            index += 1
            times.append(self._step(batch, batch) / 1000 if kind == "decode"
                         else self._prompt(tokens, index))  # fmt: skip
        self._clear()
        return times

    def _prompt(self, tokens: int, index: int) -> float:
        rid = f"p{index}"
        asked = tuple((7 * at + index) % self.vocab for at in range(tokens))
        one = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
        self.engine.add(rid, asked, one, prompt_len=tokens)
        return self._step(self.shape.rows_for(tokens), tokens) / 1000

    def _adopt(self, batch: int, context: int) -> None:
        for index in range(batch):
            rows = self.allocator.lease(OWNER, self.shape, self.shape.rows_for(context))
            kv = KVHandoff(geometry=self.shape, rows=rows, num_tokens=context - 1)
            rid = f"d{index}"
            asked = tuple((7 * at + index) % self.vocab for at in range(context))
            self.engine.add(rid, asked, ENDLESS, prompt_len=context - 1, kv=kv)
            self.requests.append(rid)

    def _step(self, rows: int, budget: int) -> float:
        """Milliseconds of one step that runs everything it may."""
        self.steps += 1
        while rows and not self.allocator.can_lease(self.shape, rows):
            rows -= 1
        lease = self.allocator.lease(OWNER, self.shape, rows)
        grant = Grant(step=self.steps, phases=frozenset(Phase), token_budget=budget,
                      max_seqs=budget, lease=lease)  # fmt: skip
        result: StepResult = self.engine.step(grant)
        self.allocator.free((*lease[result.used :], *result.freed), self.shape)
        if result.prefill_tokens + result.decode_tokens != budget:
            raise RuntimeError(f"a step ran {result.prefill_tokens} + {result.decode_tokens} "
                               f"tokens of {budget}; starved: {result.starved}")  # fmt: skip
        return result.elapsed_ms

    def _clear(self) -> None:
        for rid in self.requests:
            kv = self.engine.abort(rid)
            if kv is not None:
                self.allocator.free(kv.rows, self.shape)
        self.requests.clear()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--kv-bytes", type=int, required=True)
    host = Host(parser.parse_args())
    serve({"open": host.open, "prefill": host.prefill, "decode": host.decode, "fits": host.fits,
           "loop": host.loop, "stats": host.stats})  # fmt: skip


if __name__ == "__main__":
    main()
