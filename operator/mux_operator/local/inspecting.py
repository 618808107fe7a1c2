"""Inspect runs on this machine: a subprocess that reads a checkpoint's config and headers."""

import asyncio
import contextlib
from typing import Final

from mux_core.reasons import Reason
from mux_core.status import Resolved
from mux_operator.local.commands import inspect_command
from mux_operator.local.processes import tied
from mux_operator.resolving import resolved_from

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
        message = f"{folder}: not read within {TIMEOUT_S:.0f} s; is its file system reachable?"
        return Resolved(source=source, error_reason=Reason.INSPECTION_FAILED, message=message)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return resolved_from(out.decode(errors="replace"), errors.decode(errors="replace"),
                         source=source)  # fmt: skip
