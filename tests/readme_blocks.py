"""Command blocks of the README and other pages, with what each says it is."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
_BLOCK: Final = re.compile(r"^<!-- test: (\w+) -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str = "README.md") -> list[tuple[str, str]]:
    """(kind, commands) of every block, in order."""
    return [(m[1], m[2]) for m in _BLOCK.finditer((ROOT / page).read_text())]
