"""The route table in force, and who wants to know when it changes.

A table comes from a file (at start, and when the file changes) or by gRPC; the newest generation
wins, whichever way it came. Without a new table the gateway serves from the last one.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mux_core.errors import SpecError
from mux_core.routes import RouteTable, from_json

_log = logging.getLogger(__name__)
_POLL_S: Final = 0.5


class RouteBook:
    """Holds one table. `has_table` is false until any table came, an empty one included."""

    def __init__(self) -> None:
        self.table = RouteTable(namespace="")
        self.has_table = False
        self._listeners: list[Callable[[RouteTable], None]] = []

    def listen(self, listener: Callable[[RouteTable], None]) -> None:
        """`listener` is called with every new table, after it is in force."""
        self._listeners.append(listener)

    def apply(self, table: RouteTable) -> bool:
        """Puts `table` in force unless a newer one is; says whether its generation is."""
        if self.has_table and table.generation < self.table.generation:
            return False
        self.table, self.has_table = table, True
        for listener in self._listeners:
            listener(table)
        return True

    def read(self, path: Path) -> None:
        """Takes the table from a file; a wrong file leaves the table as it is.

        A missing file at start is an empty table.
        """
        try:
            table = from_json(path.read_text())
        except FileNotFoundError:
            self.has_table = True
            return
        except (OSError, SpecError) as error:
            _log.error("routes file %s: %s; the last table stays in force", path, error)
            return
        if not self.apply(table):
            _log.warning("routes file %s: generation %d is older than %d; ignored", path,
                         table.generation, self.table.generation)  # fmt: skip

    async def follow(self, path: Path) -> None:
        """Reads the file again whenever it changes; never returns."""
        seen = _stamp(path)
        self.read(path)
        while True:
            await asyncio.sleep(_POLL_S)
            stamp = _stamp(path)
            if stamp != seen:
                seen = stamp
                self.read(path)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Tells one content of the file from the next without reading it."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
