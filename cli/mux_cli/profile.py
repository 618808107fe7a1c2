"""`muxserve profile`: what the steps of your models cost on this machine, measured."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  muxserve profile ./qwen3-0.6b -o qwen.json             a checkpoint on this machine's processor
  muxserve profile a/ b/ -o both.json                    two models, and how they slow each other
  muxserve profile --config config.json -o p.json        no weights needed: random ones are as fast
  muxserve profile ./qwen3-0.6b -o qwen.json --passes 1  one pass; the same again adds the next
  muxserve plan -f manifests/ --profiles qwen.json       plan with it

A run that was killed goes on where it was: give the same command again. docs/profiling.md says how
to read the picture.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve profile`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL",
                        help="folder of a checkpoint")  # fmt: skip
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="config.json",
        help="a model without weights; named after its folder; repeatable",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE",
                        help="the profile to write; a picture goes beside it")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="a coarse profile in less than two minutes")  # fmt: skip
    parser.add_argument("--memory", type=float, default=1.0, metavar="GIB",
                        help="KV memory to measure with (default: %(default)g)")  # fmt: skip
    parser.add_argument(
        "--max-batch",
        type=int,
        metavar="N",
        help="largest decode batch (default: what the memory holds, up to 256)",
    )
    parser.add_argument(
        "--passes",
        type=int,
        metavar="N",
        help="make no more than N passes over the points now; the same command adds further ones "
        "to the profile (default: all)",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, writes the profile and its picture, says what was found."""
    from mux_cli.profile_job import ProfileJob
    from mux_cli.profile_report import plot_profiles, summary
    from mux_cli.profile_subjects import read_subjects

    profiles = ProfileJob(args, read_subjects(args)).run()
    picture = args.output.with_suffix(".png")
    plot_profiles(profiles, picture)
    for line in summary(profiles):
        print(line)
    print(f"profile {args.output}, picture {picture}")
    return 0
