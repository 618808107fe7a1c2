"""The journal beside a profile: each measurement is on disk before the next begins.

JSON lines, only ever appended to. The first says what is being profiled; a line that a kill cut
short is dropped. One process writes at a time, kept by a lock that goes with it.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from io import BufferedRandom
from pathlib import Path
from typing import Any, Self

from mux_core.errors import SpecError

Value = Mapping[str, Any]


class Journal:
    """Measurements by (key, pass). Use `Journal.open`; close it when done."""

    def __init__(self, path: Path, file: BufferedRandom) -> None:
        self.path = path
        self._file = file
        self.found: dict[tuple[str, int], Value] = {}

    @classmethod
    def open(cls, path: Path, header: Value) -> Self:
        """Begins a journal or goes on with it. SpecError: another profile's, or in use."""
        try:
            file = path.open("a+b")
        except OSError as error:
            raise SpecError(f"{path}: cannot be written ({error.strerror}); choose another place"
                            ) from error  # fmt: skip
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise SpecError(f"{path}: another muxserve profile writes it; wait for it or choose "
                            "another -o") from None  # fmt: skip
        journal = cls(path, file)
        try:
            journal._load(header)
        except BaseException:
            file.close()
            raise
        return journal

    def note(self, key: str, turn: int, value: Value) -> None:
        """Keeps one measurement; on disk when this returns."""
        self.found[key, turn] = value
        self._write({"key": key, "pass": turn, "value": dict(value)})

    def close(self) -> None:
        self._file.close()

    def _load(self, header: Value) -> None:
        self._file.seek(0)
        text = self._file.read()
        whole, cut = text[: text.rfind(b"\n") + 1], text[text.rfind(b"\n") + 1 :]
        if cut:
            self._file.truncate(len(whole))
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            self._write(header)
            return
        if lines[0] != json.loads(json.dumps(header)):
            differs = ", ".join(_differences(lines[0], json.loads(json.dumps(header))))
            raise SpecError(f"{self.path}: begun with {differs}; remove it to begin anew, or "
                            "choose another -o")  # fmt: skip
        for line in lines[1:]:
            self.found[line["key"], line["pass"]] = line["value"]

    def _write(self, line: Value) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _differences(before: Value, now: Value) -> Iterator[str]:
    """`made.commit abc, now def` for everything that is not the same."""
    for name in sorted({*before, *now}):
        was, found = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(found, dict):
            yield from (f"{name}.{said}" for said in _differences(was, found))
        elif was != found:
            yield f"{name} {was}, now {found}"
