"""The process kubelet: one Node whose pods run as local processes.

`python -m harness.kubelet.main SETTINGS.json`; the handle for tests is `harness.process_node`.

What is real: the Node authorizer, scheduling, volumes at their paths, probes, restarts, graceful
deletion, one process namespace and one network address per container or pod. What is not: images
(the command runs on this machine's files), resource limits (only a memory emptyDir's size holds),
users and capabilities, exec and port-forward. Pods share one network namespace, so a pod binds
its own address (`status.podIP` in the environment) and never 0.0.0.0.
"""

import asyncio
import signal
import sys
from pathlib import Path

from harness.api import connect
from harness.kubelet.log_server import serve_logs
from harness.kubelet.node import keep_alive
from harness.kubelet.pods import Pods
from harness.kubelet.settings import KubeletSettings


async def run(settings: KubeletSettings) -> None:
    """Serve until SIGTERM or SIGINT; a failing task ends the node loudly."""
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    settings.pods_folder.mkdir(parents=True, exist_ok=True)
    async with connect(settings.kubeconfig) as api:
        pods = Pods(api, settings)
        async with serve_logs(pods, settings):
            work = [
                asyncio.create_task(keep_alive(api, settings.node)),
                asyncio.create_task(pods.follow()),
                asyncio.create_task(_wait(end)),
            ]
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in work:
                task.cancel()
            await pods.stop()
            for task in done:
                task.result()


async def _wait(end: asyncio.Event) -> None:
    await end.wait()


if __name__ == "__main__":
    asyncio.run(run(KubeletSettings.from_json(Path(sys.argv[1]).read_text())))
