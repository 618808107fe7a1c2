"""Inspect runs on this machine: a subprocess that reads a checkpoint's config and headers."""

import asyncio
import contextlib
from typing import Final

from mux_core.checkpoint import Unresolved, from_json
from mux_core.errors import SpecError
from mux_core.reasons import Reason
from mux_core.status import Resolved
from mux_operator.local.commands import inspect_command
from mux_operator.local.processes import tied

TIMEOUT_S: Final = 60.0


async def inspect(folder: str, *, source: str) -> Resolved:
    """Runs one inspection to its end; a run that fails is a result with its reason."""
    process = await asyncio.create_subprocess_exec(
        *tied(inspect_command(folder)), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError:
        return _failed(source, f"{folder}: not read within {TIMEOUT_S:.0f} s; is its file system "
                       "reachable?")  # fmt: skip
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return resolved_from(out.decode(errors="replace"), errors.decode(errors="replace"),
                         source=source)  # fmt: skip


def resolved_from(text: str, errors: str, *, source: str) -> Resolved:
    """What an inspect run printed, as a status keeps it."""
    try:
        found = from_json(text)
    except SpecError as error:
        last = errors.strip().splitlines()[-1:] or [str(error)]
        return _failed(source, last[0])
    if isinstance(found, Unresolved):
        return Resolved(source=source, error_reason=found.reason, message=found.message)
    return Resolved(source=source, geometry=found.geometry, weight_bytes=found.weight_bytes)


def _failed(source: str, message: str) -> Resolved:
    return Resolved(source=source, error_reason=Reason.INSPECTION_FAILED, message=message)
