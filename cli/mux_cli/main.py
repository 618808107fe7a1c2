"""The `muxserve` command: a table of subcommands, each imported only when it is asked for.

Exit codes: 0 done, 1 it failed while running, 2 what was given is wrong (arguments, manifests,
a port in use) or a model can never serve as it is written.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Final, Protocol, cast

from mux_core.errors import MuxError, SpecError

OK: Final = 0
FAILED: Final = 1
WRONG_INPUT: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Subcommand:
    """A row of the table: the module that has `configure` and `run`, and one line of help."""

    module: str
    summary: str


SUBCOMMANDS: Final[Mapping[str, Subcommand]] = {
    "up": Subcommand(
        module="mux_cli.up", summary="serve manifests on this machine, behind one OpenAI endpoint"
    ),
    "plan": Subcommand(
        module="mux_cli.plan", summary="which LLMs share which GPUs, before you buy them"
    ),
    "workload": Subcommand(
        module="mux_cli.workload", summary="make a workload file for `muxserve plan`"
    ),
    "profile": Subcommand(
        module="mux_cli.profile", summary="measure what steps of your models cost on this machine"
    ),
    "validate": Subcommand(
        module="mux_cli.validate", summary="predicted, simulated and observed, side by side"
    ),
    "simulate": Subcommand(
        module="mux_cli.simulate", summary="what a plan makes of a workload, on a virtual clock"
    ),
    "compare": Subcommand(
        module="mux_cli.compare", summary="several plans and policies under the same requests"
    ),
    "status": Subcommand(
        module="mux_cli.status", summary="what a running `muxserve up` serves, and why not"
    ),
}


class CommandModule(Protocol):
    """What a module of the table offers."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's arguments; does no work."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Does it; answers with the exit code. A MuxError raised is printed."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; the exit code. Only that subcommand's module is imported."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = next((word for word in arguments if not word.startswith("-")), "")
    parser = _parser(named)
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return WRONG_INPUT
    try:
        return _module(args.command).run(args)
    except SpecError as error:
        print(f"muxserve {args.command}: {error}", file=sys.stderr)
        return WRONG_INPUT
    except MuxError as error:
        print(f"muxserve {args.command}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _parser(named: str) -> argparse.ArgumentParser:
    """The parser with the arguments of `named` filled in; the others are listed by name."""
    parser = argparse.ArgumentParser(
        prog="muxserve",
        description="Serve many LLMs on few GPUs by spatial-temporal multiplexing.",
        epilog="`muxserve COMMAND --help` says more about one command.",
    )
    parser.add_argument("--version", action="version", version=f"muxserve {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in SUBCOMMANDS.items():
        child = commands.add_parser(name, help=command.summary, description=command.summary)
        if name == named:
            _module(name).configure(child)
    return parser


def _module(name: str) -> CommandModule:
    return cast(CommandModule, import_module(SUBCOMMANDS[name].module))


def _version() -> str:
    try:
        return metadata.version("muxserve-operator")
    except metadata.PackageNotFoundError:
        return "unknown (not installed; run make setup)"


if __name__ == "__main__":
    sys.exit(main())
