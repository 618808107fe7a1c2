"""A result on standard output, as `-o` asks: one JSON or YAML object, or tables."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from rich.console import Console

FORMATS = ("table", "json", "yaml")
PLAIN_WIDTH = 140
"""Columns of a table where standard output is no terminal."""


def output_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `-o`."""
    parser.add_argument("-o", "--output", choices=FORMATS, default="table")


def print_result(
    document: Mapping[str, Any], output: str, table: Callable[[Mapping[str, Any], Console], None]
) -> None:
    """Prints `document`; `table` is how people want it."""
    if output == "json":
        json.dump(document, sys.stdout, indent=1)
        sys.stdout.write("\n")
    elif output == "yaml":
        yaml.safe_dump(document, sys.stdout, sort_keys=False)
    else:
        table(document, Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH))
