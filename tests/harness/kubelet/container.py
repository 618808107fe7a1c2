"""One container of a pod: started, probed, restarted with back-off, stopped."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness.api import Object
from harness.kubelet import probes
from harness.kubelet.clock import now
from harness.kubelet.inputs import NotYetError
from harness.kubelet.process import ContainerProcess, Plan
from harness.kubelet.settings import NodeSettings

Policy = Literal["Always", "OnFailure", "Never"]

_SOURCE_WAIT = 0.2
_MESSAGE_BYTES = 4096
_NEVER_STARTED = 137


@dataclass(slots=True)
class ContainerState:
    """What the pod's status says about the container, in the API's words."""

    state: Object = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last_state: Object = field(default_factory=dict)
    is_ready: bool = False
    is_started: bool = False
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a container needs of its pod."""

    node: NodeSettings
    address: str
    folder: Path
    liveness_grace: float
    log: Callable[[str, int], Path]
    make_plan: Callable[[Object], Awaitable[Plan]]
    report: Callable[[], None]
    event: Callable[[str, str, str], None]


class Container:
    def __init__(self, spec: Object, policy: Policy, around: Surroundings) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.policy = policy
        self.state = ContainerState()
        self.up = asyncio.Event()
        self.exit_code: int | None = None
        self._around = around
        self._process: ContainerProcess | None = None
        self._is_stopping = False
        # Set while there is no process and none is about to start.
        self._settled = asyncio.Event()
        self._settled.set()

    async def run(self) -> int:
        """Run until the policy says it is over; the last exit code."""
        wait = self._around.node.restart_wait_seconds
        while True:
            began = time.monotonic()
            code = await self._run_once()
            self._settled.set()
            if self._is_over(code):
                self.exit_code = code
                return code
            # A run of ten waits counts as healthy: the next failure waits briefly again.
            if time.monotonic() - began > 10 * wait:
                wait = self._around.node.restart_wait_seconds
            self.state.last_state = self.state.state
            # The first restart comes at once, as on a real node.
            if self.state.restarts > 0:
                await self._back_off(wait)
                wait = min(wait * 2, self._around.node.restart_wait_limit_seconds)
            self.state.restarts += 1

    async def stop(self, grace: float) -> None:
        """preStop hook, TERM, the grace period, KILL; returns when the state says so."""
        self._is_stopping = True
        await self._end(grace)
        await self._settled.wait()

    def kill(self) -> None:
        self._is_stopping = True
        if self._process is not None:
            self._process.kill()

    async def execute(self, argv: list[str], seconds: float) -> int:
        return -1 if self._process is None else await self._process.execute(argv, seconds)

    def _is_over(self, code: int) -> bool:
        if self._is_stopping or self.policy == "Never":
            return True
        return self.policy == "OnFailure" and code == 0

    async def _run_once(self) -> int:
        if self._is_stopping:
            return _NEVER_STARTED
        self._settled.clear()
        plan = await self._plan()
        if plan is None:
            return _NEVER_STARTED
        log = self._around.log(self.name, self.state.restarts)
        plan_file = self._around.folder / f"{self.name}.plan"
        self._process = await ContainerProcess.start(plan, plan_file, log)
        if self._is_stopping:
            self._process.kill()
        started = now()
        self._set({"running": {"startedAt": started}})
        self._around.event("Normal", "Started", f"Started container {self.name}")
        watch = asyncio.create_task(self._watch_health())
        try:
            code = await self._process.wait()
        finally:
            watch.cancel()
        self.state.is_ready = self.state.is_started = False
        self._set({"terminated": self._terminated(code, started)})
        return code

    async def _plan(self) -> Plan | None:
        while not self._is_stopping:
            try:
                return await self._around.make_plan(self.spec)
            except NotYetError as error:
                reason = {"reason": "CreateContainerConfigError", "message": str(error)}
                self._set({"waiting": reason})
                await asyncio.sleep(_SOURCE_WAIT)
        return None

    async def _back_off(self, seconds: float) -> None:
        message = f"back-off {seconds}s restarting failed container={self.name}"
        self._set({"waiting": {"reason": "CrashLoopBackOff", "message": message}})
        self._around.event("Warning", "BackOff", f"Back-off restarting container {self.name}")
        await asyncio.sleep(seconds)

    async def _watch_health(self) -> None:
        probe = probes.Prober(self.spec, self._around.address, self.execute)
        if not await self._pass_startup(probe):
            return
        self.state.is_started = True
        self.state.is_ready = "readinessProbe" not in self.spec
        self.up.set()
        self._around.report()
        await asyncio.gather(self._follow_readiness(probe), self._follow_liveness(probe))

    async def _pass_startup(self, probe: probes.Prober) -> bool:
        async for verdict in probe.verdicts("startupProbe"):
            if verdict.is_good:
                return True
            await self._fail("Startup", verdict.message)
            return False
        return True

    async def _follow_readiness(self, probe: probes.Prober) -> None:
        async for verdict in probe.verdicts("readinessProbe"):
            if not verdict.is_good:
                message = f"Readiness probe failed: {verdict.message}"
                self._around.event("Warning", "Unhealthy", message)
            self.state.is_ready = verdict.is_good and not self._is_stopping
            self._around.report()

    async def _follow_liveness(self, probe: probes.Prober) -> None:
        async for verdict in probe.verdicts("livenessProbe"):
            if not verdict.is_good:
                await self._fail("Liveness", verdict.message)
                return

    async def _fail(self, kind: str, message: str) -> None:
        self._around.event("Warning", "Unhealthy", f"{kind} probe failed: {message}")
        # Not awaited here: the end of the process cancels this very task.
        self._ending = asyncio.create_task(self._end(self._around.liveness_grace))

    async def _end(self, grace: float) -> None:
        process = self._process
        if process is None or not process.is_running:
            return
        began = time.monotonic()
        if grace > 0:
            await self._before_stop(grace)
            process.send(signal.SIGTERM)
            left = max(grace - (time.monotonic() - began), 0.1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), left)
        process.kill()
        await process.wait()

    async def _before_stop(self, grace: float) -> None:
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if not hook:
            return
        if "sleep" in hook:
            await asyncio.sleep(min(hook["sleep"]["seconds"], grace))
        else:
            probe = probes.Prober(self.spec, self._around.address, self.execute)
            await probe.check(hook | {"timeoutSeconds": grace})

    def _terminated(self, code: int, started: str) -> Object:
        ended: Object = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "startedAt": started,
            "finishedAt": now(),
        }
        message = self._around.folder / f"{self.name}.message"
        if message.exists() and message.stat().st_size:
            ended["message"] = message.read_text(errors="replace")[-_MESSAGE_BYTES:]
        return ended

    def _set(self, state: Object) -> None:
        self.state.state = state
        self._around.report()
