"""Our own MPS daemon as a real process: a stand-in program that speaks the control protocol.

Clients are processes that load a stand-in driver; both say nothing about a real GPU.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from mux_core.reasons import Reason
from mux_runtime.sm.driver import DriverUnavailable, see_gpu_outside_mps
from mux_runtime.sm.mps import PID_FILE, MpsControl, MpsPaths, MpsUnavailable
from mux_runtime.sm.partition import MpsPartition
from mux_runtime.sm.shares import ShareNotVerified
from mux_runtime.supervisor.children import Child, Children
from sm_builders import SMS, gpu, install_fakes

CLIENT = """
import json, sys, time
from mux_runtime.sm.driver import see_gpu
print(json.dumps(see_gpu().sms), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return install_fakes(tmp_path_factory.mktemp("fakes"))


@pytest.fixture
def environment(fakes: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process and its children find the stand-ins."""
    for name, value in fakes.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def paths(tmp_path: Path) -> MpsPaths:
    return MpsPaths(base=tmp_path / "mps", logs=tmp_path / "logs")


class Daemon:
    """A daemon started as the supervisor starts it."""

    def __init__(self, paths: MpsPaths) -> None:
        self.paths, self.control = paths, MpsControl(paths=paths)
        self.ended: list[tuple[Child, int]] = []
        paths.prepare()
        self.children = Children(paths.logs, lambda child, code: self.ended.append((child, code)))
        self.child = self.children.spawn("mps", self.control.daemon_argv, paths.environment())

    def words(self) -> str | None:
        self.children.reap()
        return self.ended[0][0].tail() if self.ended else None

    def wait_until_up(self) -> None:
        self.control.wait_until_up(self.words)

    def wait_ended(self) -> int:
        self.child.process.wait(10)
        self.children.reap()
        return self.ended[0][1]


@pytest.fixture
def start(environment: pytest.MonkeyPatch, paths: MpsPaths) -> Iterator[Callable[[], Daemon]]:
    started: list[Daemon] = []

    def begin() -> Daemon:
        started.append(Daemon(paths))
        return started[-1]

    yield begin
    for daemon in started:
        daemon.child.process.kill()
        daemon.child.process.wait()
    paths.prepare()


class Client:
    """A process that asks the driver what it sees, and stays."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE,
                                        env={**os.environ, **environment})  # fmt: skip
        assert self.process.stdout is not None
        self.sms = json.loads(self.process.stdout.readline())
        self.pid = self.process.pid

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_daemon_lives_from_start_to_quit_and_lists_its_clients(
    start: Callable[[], Daemon],
) -> None:
    daemon = start()
    daemon.wait_until_up()
    assert (daemon.control.servers(), daemon.control.clients()) == ((), frozenset())
    partition = MpsPartition.of(daemon.paths)
    assert (partition.gpu.sms, partition.gpu.uuid) == (SMS, gpu().uuid)
    with Client(partition.environment(30)) as host:
        assert daemon.control.clients() == {host.pid}
        assert host.sms == 38
        partition.verify("a-decode-1", pid=host.pid, percent=30, seen_sms=host.sms)
        partition.release(host.pid)
        assert daemon.control.clients() == frozenset()
    daemon.control.quit()
    assert daemon.wait_ended() == 0
    daemon.control.quit()


def test_directories_are_ours_alone(start: Callable[[], Daemon]) -> None:
    paths = start().paths
    for folder in (paths.pipe, paths.outside, paths.logs):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_two_hosts_with_unequal_shares(start: Callable[[], Daemon]) -> None:
    daemon = start()
    daemon.wait_until_up()
    partition = MpsPartition.of(daemon.paths)
    with Client(partition.environment(70)) as a, Client(partition.environment(30)) as b:
        assert (a.sms, b.sms) == (92, 38)
        assert daemon.control.clients() == {a.pid, b.pid}
        partition.verify("a", pid=a.pid, percent=70, seen_sms=a.sms)
        with pytest.raises(ShareNotVerified, match="sees 92 of 132 SMs, its share of 30 %"):
            partition.verify("b", pid=b.pid, percent=30, seen_sms=a.sms)


def test_a_wrong_pipe_directory_gives_the_whole_gpu_and_is_refused(
    start: Callable[[], Daemon],
) -> None:
    daemon = start()
    daemon.wait_until_up()
    partition = MpsPartition.of(daemon.paths)
    astray = {**partition.environment(30), "CUDA_MPS_PIPE_DIRECTORY": str(daemon.paths.outside)}
    with Client(astray) as host:
        assert host.sms == SMS
        with pytest.raises(ShareNotVerified) as refused:
            partition.verify("a", pid=host.pid, percent=30, seen_sms=host.sms)
        assert refused.value.reason is Reason.NO_LIMIT_OBSERVED
        with pytest.raises(ShareNotVerified, match="no client of this unit's MPS daemon"):
            partition.verify("a", pid=host.pid, percent=100, seen_sms=host.sms)


def test_a_driver_that_ignores_the_share_is_refused(
    start: Callable[[], Daemon], environment: pytest.MonkeyPatch
) -> None:
    daemon = start()
    daemon.wait_until_up()
    partition = MpsPartition.of(daemon.paths)
    environment.setenv("FAKE_SHARE_IGNORED", "1")
    with Client(partition.environment(30)) as host, pytest.raises(ShareNotVerified):
        partition.verify("a", pid=host.pid, percent=30, seen_sms=host.sms)


def test_a_daemon_that_refuses_to_start_gives_its_words(
    start: Callable[[], Daemon], environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("FAKE_MPS", "refusing")
    with pytest.raises(MpsUnavailable, match="ended at once: Failed to start : refusing"):
        start().wait_until_up()


def test_a_deaf_daemon_is_given_up(
    start: Callable[[], Daemon], environment: pytest.MonkeyPatch
) -> None:
    environment.setattr("mux_runtime.sm.mps._ANSWERS_WITHIN_S", 0.3)
    environment.setattr("mux_runtime.sm.mps._STARTS_WITHIN_S", 0.6)
    environment.setenv("FAKE_MPS", "deaf")
    with pytest.raises(MpsUnavailable, match="does not answer after"):
        start().wait_until_up()


def test_after_kill_9_of_the_daemon_its_server_goes_and_a_new_one_starts(
    start: Callable[[], Daemon],
) -> None:
    killed = start()
    killed.wait_until_up()
    with Client(MpsPartition.of(killed.paths).environment(50)):
        (server,) = killed.control.servers()
    os.kill(killed.child.pid, signal.SIGKILL)
    assert killed.wait_ended() == -signal.SIGKILL
    assert (killed.paths.pipe / PID_FILE).exists()
    assert is_running(server)
    with pytest.raises(MpsUnavailable, match="Cannot find MPS control daemon"):
        killed.control.clients()
    fresh = start()
    fresh.wait_until_up()
    deadline = time.monotonic() + 10
    while is_running(server) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(server)
    assert fresh.control.clients() == frozenset()


def test_a_daemon_elsewhere_is_left_alone(start: Callable[[], Daemon], tmp_path: Path) -> None:
    foreign = Daemon(MpsPaths(base=tmp_path / "foreign", logs=tmp_path / "foreign-logs"))
    foreign.wait_until_up()
    try:
        ours = start()
        ours.wait_until_up()
        ours.control.quit()
        assert ours.wait_ended() == 0
        ours.paths.prepare()
        assert foreign.words() is None
        assert foreign.control.servers() == ()
    finally:
        foreign.control.quit()
        foreign.wait_ended()


def test_no_driver_and_a_failing_one_are_told_apart(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("FAKE_CUINIT_FAILS", "1")
    with pytest.raises(DriverUnavailable, match="cuInit failed with 100"):
        see_gpu_outside_mps(tmp_path)
    environment.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(DriverUnavailable, match=r"libcuda\.so\.1"):
        see_gpu_outside_mps(tmp_path)
