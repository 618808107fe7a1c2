"""Who sets the SM shares of a profile's hosts: nobody on a CPU, our own MPS daemon on a GPU."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mux_runtime.sm.mps import MpsControl, MpsPaths
from mux_runtime.sm.partition import MpsPartition, NoPartition, SmPartitioner
from mux_runtime.supervisor.children import Child, Children


@asynccontextmanager
async def open_partition(device: str, folder: Path) -> AsyncIterator[SmPartitioner]:
    """The partitioner of a device; its daemon, if it has one, ends with this."""
    if device == "cpu":
        yield NoPartition()
        return
    control = MpsControl(paths=MpsPaths(base=folder / "mps", logs=folder / "mps-logs"))
    await asyncio.to_thread(control.paths.prepare)
    ended: list[tuple[Child, int]] = []
    children = Children(folder, lambda child, code: ended.append((child, code)))
    daemon = children.spawn("mps", control.daemon_argv, control.paths.environment())

    def last_words() -> str | None:
        return None if daemon.process.poll() is None else daemon.tail()

    try:
        await asyncio.to_thread(control.wait_until_up, last_words)
        yield await asyncio.to_thread(MpsPartition.of, control.paths)
    finally:
        await asyncio.to_thread(control.quit)
        if daemon.process.poll() is None:
            os.kill(daemon.pid, signal.SIGKILL)
        daemon.process.wait()
        children.reap()
