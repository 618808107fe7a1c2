"""What the analytic cost model misses the measured A100 tables by, by model, degree and batch.

    python benchmarks/planner/cost_model_error.py

Each cell: median of |analytic/measured - 1| over SM shares and lengths, decode / prefill.
"""

from statistics import median

from mux_core.costmodel.roofline import roofline_table
from mux_core.costmodel.smoothing import smooth
from mux_core.costmodel.table import shipped_tables
from mux_core.llm import Dtype, ModelGeometry

SHAPES = {
    "llama-7b": (32, 4096, 11008, 32), "llama-13b": (40, 5120, 13824, 40),
    "llama-30b": (60, 6656, 17920, 52), "llama-65b": (80, 8192, 22016, 64),
}  # fmt: skip
"""Layers, hidden and intermediate size, heads of LLaMA-1 (arXiv 2302.13971)."""
BATCHES = (1, 4, 16, 64, 128, 256)


def geometry(profile: str) -> ModelGeometry:
    layers, hidden, intermediate, heads = SHAPES[profile]
    return ModelGeometry(architecture="LlamaForCausalLM", layers=layers, hidden=hidden,
                         intermediate=intermediate, heads=heads, kv_heads=heads, head_dim=128,
                         vocab=32000, max_model_len=2048, dtype=Dtype.FLOAT16)  # fmt: skip


def main() -> None:
    print("model      TP  " + "".join(f"  batch {batch:<8}" for batch in BATCHES))
    decodes: list[float] = []
    prefills: list[float] = []
    for profile, table in shipped_tables().items():
        analytic = roofline_table(geometry(profile), "a100-80gb")
        for tensor in table.tensors:
            if tensor not in analytic.tensors:
                continue
            errors = cell_errors(smooth(table), analytic, tensor)
            line = "".join(f"  {shown(errors, b, 0)}/{shown(errors, b, 1):8}" for b in BATCHES)
            print(f"{profile:10} {tensor:2} {line}")
            decodes += [e for batch in errors.values() for e in batch[0]]
            prefills += [e for batch in errors.values() for e in batch[1]]
    print(f"all cells: decode median {median(decodes):.0%}, prefill median {median(prefills):.0%}")


def cell_errors(measured, analytic, tensor):  # type: ignore[no-untyped-def]
    errors: dict[int, tuple[list[float], list[float]]] = {}
    for percent in measured.percents(tensor):
        known = {(row.batch, row.tokens): row for row in measured.rows(tensor, percent)}
        for row in analytic.rows(tensor, percent):
            other = known.get((row.batch, row.tokens))
            decode, prefill = errors.setdefault(row.batch, ([], []))
            if other and other.decode_s:
                decode.append(abs(row.decode_s / other.decode_s - 1))
            if other and other.prefill_s:
                prefill.append(abs(row.prefill_s / other.prefill_s - 1))
    return errors


def shown(errors, batch: int, phase: int) -> str:  # type: ignore[no-untyped-def]
    found = errors.get(batch, ([], []))[phase]
    return f"{median(found):4.0%}" if found else "   -"


if __name__ == "__main__":
    main()
