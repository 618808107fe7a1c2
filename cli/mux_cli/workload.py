"""`muxserve workload`: writes a workload file for `muxserve plan`."""

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import yaml

from mux_core.data import read_text
from mux_core.errors import SpecError

SYNTHETIC = ("llama-7b",) * 12 + ("llama-13b",) * 4 + ("llama-30b",) * 2 + ("llama-65b",)
SYNTHETIC_GPUS = {"llama-7b": 1, "llama-13b": 1, "llama-30b": 4, "llama-65b": 8}
CHATLMSYS_GPUS = {"llama-7b": 1, "llama-13b": 2, "llama-30b": 2, "llama-65b": 4}
"""Whole GPUs per LLM in MuxServe's spatial baseline."""
PEAK_RATE = 40.0

EXAMPLES = """examples:
  muxserve workload --power-law 2.1 --scale 0.5 > hot.json       one LLM takes 66% of the traffic
  muxserve workload --power-law 0.9 --scale 1 --permute 7 -o yaml popularity shuffled against size
  muxserve workload --chatlmsys 800 --out chat.json              16 LLMs of a public chat trace
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve workload`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    family = parser.add_mutually_exclusive_group(required=True)
    family.add_argument("--power-law", type=float, metavar="ALPHA",
                        help="rate of LLM i is 40 * SCALE * (i+1)^-ALPHA; 12 x 7B, 4 x 13B, "
                        "2 x 30B, 1 x 65B")  # fmt: skip
    family.add_argument("--chatlmsys", type=float, metavar="DENSITY",
                        help="rates of 16 LLMs of half a day of ChatLMSYS, time compressed by "
                        "DENSITY (500, 800, 2000, ...)")  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all rates (1.0)")
    parser.add_argument("--permute", type=int, metavar="SEED",
                        help="shuffle popularity against model size, with this seed")  # fmt: skip
    parser.add_argument("--nodes", type=int, default=4, help="nodes of the cluster (4)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="GPUs of each node (8)")
    parser.add_argument("--gpu", default="a100-80gb", help="GPU type (a100-80gb)")
    parser.add_argument("-o", "--output", choices=("json", "yaml"), default="json")
    parser.add_argument("--out", type=Path, help="file to write; standard output without it")


def run(args: argparse.Namespace) -> int:
    """Writes the workload."""
    if not args.scale > 0:
        raise SpecError(f"--scale {args.scale:g}: above 0")
    models = _power_law(args) if args.power_law is not None else _chatlmsys(args)
    document = {
        "cluster": {"nodes": args.nodes, "gpus_per_node": args.gpus_per_node, "gpu": args.gpu},
        "models": models,
    }
    dump = (
        json.dumps(document, indent=1) + "\n"
        if args.output == "json"
        else yaml.safe_dump(document, sort_keys=False)
    )
    if args.out is None:
        sys.stdout.write(dump)
    else:
        write_whole(args.out, dump)
    return 0


def write_whole(path: Path, text: str) -> None:
    """The file appears complete or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SpecError(f"{path}: cannot be written ({error.strerror}); choose another place"
                        ) from error  # fmt: skip


def _power_law(args: argparse.Namespace) -> list[dict[str, Any]]:
    rates = [
        PEAK_RATE * args.scale * (index + 1) ** -args.power_law for index in range(len(SYNTHETIC))
    ]
    if args.permute is not None:
        random.Random(args.permute).shuffle(rates)
    return [
        _model(f"llm-{index}", profile, rate, 161, 337, SYNTHETIC_GPUS[profile])
        for index, (profile, rate) in enumerate(zip(SYNTHETIC, rates, strict=True))
    ]


def _chatlmsys(args: argparse.Namespace) -> list[dict[str, Any]]:
    if not args.chatlmsys > 0:
        raise SpecError(f"--chatlmsys {args.chatlmsys:g}: a density above 0, e.g. 500")
    trace = json.loads(read_text("chatlmsys.json"))
    density = args.chatlmsys * args.scale
    rates = [
        (model["requests"] + 1) / trace["trace_window_s"] * density for model in trace["models"]
    ]
    if args.permute is not None:
        random.Random(args.permute).shuffle(rates)
    hottest = _hottest_13b(trace["models"], rates)
    return [
        _model(
            model["name"],
            model["profile"],
            rate,
            trace["prompt_tokens"],
            trace["output_tokens"],
            1 if index in hottest else CHATLMSYS_GPUS[model["profile"]],
        )
        for index, (model, rate) in enumerate(zip(trace["models"], rates, strict=True))
    ]


def _hottest_13b(models: list[dict[str, Any]], rates: list[float]) -> set[int]:
    """The two hottest 13B, which the published baseline gives one GPU each."""
    found = [index for index, model in enumerate(models) if model["profile"] == "llama-13b"]
    return set(sorted(found, key=lambda index: (-rates[index], index))[:2])


def _model(
    name: str, profile: str, rate: float, prompt: float, output: float, gpus: int
) -> dict[str, Any]:
    return {
        "name": name,
        "profile": profile,
        "rate": rate,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "spatial_gpus": gpus,
    }
