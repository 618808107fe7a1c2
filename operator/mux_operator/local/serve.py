"""`muxserve up`: validate, claim, start, say when ready, follow the files, drain.

Exit codes: 0 ended by SIGTERM or Ctrl-C, 1 something of ours failed, 2 wrong input: manifests, a
port or data directory in use, or (before ready, without --keep-going) a model that never serves.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mux_core.errors import PeerError, SpecError
from mux_core.routes import RouteTable
from mux_core.routes import to_json as routes_json
from mux_operator.local.datadir import DataDir, default_root, write_json
from mux_operator.local.door import LocalCluster
from mux_operator.local.end_signals import EndSignals
from mux_operator.local.endpoint import served_names
from mux_operator.local.manifests import manifest_files
from mux_operator.local.objects import Objects
from mux_operator.local.ports import HOST, Ports, require_free
from mux_operator.local.progress import Progress, status_document
from mux_operator.local.trees import Trees
from mux_operator.local.verdict import Verdict, judge
from mux_operator.local.watching import INTERVAL_S, FileWatch, signatures
from mux_operator.metrics import Metrics
from mux_operator.probes import Probes
from mux_operator.profiles import Profiles
from mux_operator.reconciler import Reconciler
from mux_operator.search import SearchProcess

OK: Final = 0
WRONG_INPUT: Final = 2
TICK_S: Final = 0.1
GATEWAY_TRIES: Final = 3
LIVED_LONG_S: Final = 60.0
"""A gateway that ran this long starts again without counting against its tries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line said. `port` 0 draws a free one; `data_dir` None: by the port."""

    paths: tuple[Path, ...]
    port: int = 8000
    data_dir: Path | None = None
    keep_going: bool = False
    profiles: Profiles = field(default_factory=Profiles)


def serve(options: Options) -> int:
    """Serves until told to end; the exit code. SpecError for wrong input, nothing started."""
    with EndSignals() as signals:
        return _serve(options, signals)


def _serve(options: Options, signals: EndSignals) -> int:
    progress = Progress(clock=time.monotonic)
    objects = Objects(clock=time.time)
    taken = _read_all(options.paths, objects, progress)
    ports = Ports()
    port = options.port or ports.draw(1)[0]
    require_free(port)
    data = DataDir((options.data_dir or default_root(port)).resolve())
    try:
        left = data.claim()
        _log_to(data.logs / "up.log")
        for identity in left.processes:
            progress.line(f"ended pid {identity.pid}, left by a server that was killed")
        server = Server(options=options, port=port, data=data, objects=objects,
                        progress=progress, watch=FileWatch(taken=taken), ports=ports,
                        signals=signals)  # fmt: skip
        return OK if signals.count else asyncio.run(server.run())
    finally:
        data.release()


def _read_all(
    paths: tuple[Path, ...], objects: Objects, progress: Progress
) -> dict[Path, tuple[int, int, int]]:
    """Reads every manifest. SpecError lists everything that is wrong with any of them."""
    missing = [f"{path}: no such file or folder" for path in paths if not path.exists()]
    taken = signatures(paths)
    outcome = objects.update(changed=manifest_files(paths))
    wrong = [*missing, *(str(problem) for problem in outcome.problems)]
    if wrong:
        count = "1 problem" if len(wrong) == 1 else f"{len(wrong)} problems"
        raise SpecError("\n  ".join([f"{count} in the manifests, nothing was started", *wrong]))
    if not objects.by_key:
        raise SpecError(f"no manifest in {', '.join(str(path) for path in paths)}; write an "
                        "LLMDeployment into a .yaml file there")  # fmt: skip
    progress.lines(outcome.notes)
    return taken


def _log_to(file: Path) -> None:
    """Every action of the loop with its reason; people read the progress lines instead."""
    logging.basicConfig(filename=file, level=logging.INFO, force=True,
                        format="%(asctime)s %(levelname)s %(name)s: %(message)s")  # fmt: skip


class Server:
    """One running `muxserve up`; made after the data directory is claimed."""

    def __init__(
        self, *, options: Options, port: int, data: DataDir, objects: Objects,
        progress: Progress, watch: FileWatch, ports: Ports, signals: EndSignals,
    ) -> None:  # fmt: skip
        self._options, self._port, self._data = options, port, data
        self._objects, self._progress, self._watch = objects, progress, watch
        self._signals = signals
        self._trees = Trees(data, time.monotonic, ports)
        self._url = f"http://{HOST}:{port}"
        self._door = LocalCluster(data=data, objects=objects, trees=self._trees,
                                  listener=progress, url=self._url)  # fmt: skip
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ready = False
        self._written: object = None
        self._metrics = ""
        self._complaint = ""
        self._gateway_restarts = 0
        self._gateway_started = time.monotonic()

    async def run(self) -> int:
        """From the first process to the last; the exit code."""
        with self._signals.told(self._told_to_end):
            table = RouteTable(namespace=self._objects.namespace)
            write_json(self._data.routes, routes_json(table))
            self._trees.start_gateway(self._port)
            loop = asyncio.create_task(self._reconcile(), name="reconcile")
            try:
                return await self._follow(loop)
            finally:
                loop.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await loop
                await self._door.close()
                await self._drain()

    async def _reconcile(self) -> None:
        """The operator's loop, with its series on a port of their own."""
        metrics = Metrics()
        probes = Probes(alive=str, ready=str, registry=metrics.registry)
        runner = await probes.start(HOST, 0)
        self._metrics = f"http://{HOST}:{runner.addresses[0][1]}/metrics"
        search = SearchProcess(self._options.profiles)
        try:
            await Reconciler(self._door, search=search, metrics=metrics).run()
        finally:
            await runner.cleanup()

    async def _follow(self, loop: asyncio.Task[None]) -> int:
        """Watches processes, files and readiness until told to end."""
        next_look = 0.0
        while not self._stop.is_set():
            if loop.done():
                loop.result()
            self._follow_processes()
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + INTERVAL_S
                self._follow_files()
            verdict = judge(self._door.llms(self._objects.namespace))
            self._write_status()
            if not self._ready and verdict.settled:
                if verdict.failed and not self._options.keep_going:
                    return self._give_up(verdict)
                await self._say_ready(verdict)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), TICK_S)
        return OK

    def _follow_processes(self) -> None:
        self._door.mark(self._trees.poll())
        while self._trees.deaths:
            self._progress.line(f"unit {self._trees.deaths.pop(0)}")
        self._keep_gateway()
        self._progress.flush()

    def _follow_files(self) -> None:
        try:
            changes = self._watch.look(signatures(self._options.paths))
        except OSError as error:
            self._unreadable(str(error))
            return
        self._unreadable("")
        if not changes:
            return
        before = set(self._objects.by_key)
        outcome = self._objects.update(changed=changes.changed, gone=changes.gone)
        for problem in outcome.problems:
            self._progress.line(f"not taken: {problem}")
        self._progress.lines(outcome.notes)
        for kind, _, name in sorted(before - set(self._objects.by_key)):
            self._progress.line(f"{kind}/{name}: deleted")
            self._progress.forget(name)
        for kind, _, name in sorted(set(self._objects.by_key) - before):
            self._progress.line(f"{kind}/{name}: added")
        if outcome.changed:
            self._door.mark()

    def _unreadable(self, why: str) -> None:
        """A folder that cannot be listed changes nothing; said once."""
        if why and why != self._complaint:
            self._progress.line(f"not taken: {why}; what was read before stays")
        self._complaint = why

    async def _say_ready(self, verdict: Verdict) -> None:
        """Once the endpoint itself lists every model that serves."""
        try:
            names = await served_names(HOST, self._port)
        except OSError:
            return
        if set(verdict.serving) <= names:
            self._ready = True
            self._progress.ready(self._url)

    def _give_up(self, verdict: Verdict) -> int:
        for name, condition in verdict.failed:
            self._progress.line(f"{name}: will not serve: {condition.reason}: {condition.message}")
        self._progress.line(f"{len(verdict.failed)} of "
                            f"{len(verdict.failed) + len(verdict.serving)} models cannot serve as "
                            "written; fix them, or serve the others with --keep-going")  # fmt: skip
        return WRONG_INPUT

    def _keep_gateway(self) -> None:
        """Starts the gateway again when it ended; gives up when it cannot even start."""
        gateway = self._trees.gateway
        if gateway is None or gateway.child.exit_code is None:
            return
        code, tail = gateway.child.exit_code, gateway.child.log_tail()
        if time.monotonic() - self._gateway_started > LIVED_LONG_S:
            self._gateway_restarts = 0
        self._gateway_restarts += 1
        self._gateway_started = time.monotonic()
        if self._gateway_restarts > GATEWAY_TRIES:
            raise PeerError(f"gateway: ended with code {code} {self._gateway_restarts} times: "
                            f"{tail}; see {gateway.child.log}")  # fmt: skip
        self._progress.line(f"gateway: ended with code {code}, started again: {tail}")
        self._trees.start_gateway(self._port)
        self._door.mark()

    def _write_status(self) -> None:
        llms = self._door.llms(self._objects.namespace)
        document = status_document(self._url, self._metrics, llms, self._trees.supervisors())
        if document != self._written:
            self._written = document
            write_json(self._data.status, document)

    async def _drain(self) -> None:
        """Ends every process: running requests finish, unless a second signal hurries."""
        self._trees.stop_all()
        hurried = False
        while not self._trees.end():
            if self._hurry.is_set() and not hurried:
                hurried = True
                self._progress.line("ending at once")
                self._trees.kill_all()
            await asyncio.sleep(TICK_S / 2)

    def _told_to_end(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
            return
        self._stop.set()
        self._progress.line("ending: running requests finish; once more ends them at once")
