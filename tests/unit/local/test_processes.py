"""Children that die with us, identities, the data directory and its lock."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mux_core.errors import SpecError
from mux_operator.local import processes
from mux_operator.local.datadir import DataDir
from mux_operator.local.ports import Ports, require_free
from mux_operator.local.processes import Identity, end_stale, identity_of, start

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def gone(pid: int) -> bool:
    for _ in range(200):
        if identity_of(pid) is None:
            return True
        time.sleep(0.02)
    return False


def test_a_child_runs_in_its_own_group_and_dies_by_kill(tmp_path: Path) -> None:
    child = start("unit", SLEEP, log=tmp_path / "log")
    assert os.getpgid(child.pid) == child.pid
    assert child.identity.runs
    child.kill_group()
    assert child.process.wait(10) == -signal.SIGKILL
    assert not child.identity.runs


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path\n"
        "from mux_operator.local.processes import start\n"
        f"child = start('x', {SLEEP!r}, log=Path({str(tmp_path / 'log')!r}))\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


def test_an_identity_is_not_another_process_with_the_same_pid(tmp_path: Path) -> None:
    child = start("unit", SLEEP, log=tmp_path / "log")
    try:
        same = child.identity
        later = Identity(pid=same.pid, start_ticks=same.start_ticks + 1, command=same.command)
        other = Identity(pid=same.pid, start_ticks=same.start_ticks, command=("other",))
        assert end_stale([later, other]) == ()
        assert same.runs
        assert end_stale([same], grace_s=0) == (same,)
    finally:
        child.kill_group()
        child.process.wait()


def test_the_last_lines_of_the_log_are_kept_for_people(tmp_path: Path) -> None:
    child = start("unit", [sys.executable, "-c", "print('one'); print('two')"],
                  log=tmp_path / "log")  # fmt: skip
    child.process.wait()
    assert child.log_tail(1) == "two"


def test_a_second_server_on_a_data_directory_is_refused_with_the_pid(tmp_path: Path) -> None:
    first = DataDir(tmp_path / "d")
    first.claim()
    with pytest.raises(SpecError, match=rf"pid {os.getpid()}; .*--data-dir"):
        DataDir(tmp_path / "d").claim()
    first.release()
    again = DataDir(tmp_path / "d")
    again.claim()
    again.release()


def test_nothing_but_logs_is_left_after_release(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "d")
    data.claim()
    (data.run / "u0-1").mkdir()
    data.record({"u0": Identity(pid=1, start_ticks=1, command=("x",))})
    data.release()
    assert sorted(p.name for p in data.root.iterdir()) == ["logs"]
    assert not data.run.exists()


def test_claiming_after_a_killed_server_ends_what_it_left(tmp_path: Path) -> None:
    killed = DataDir(tmp_path / "d")
    killed.claim()
    left = subprocess.Popen(SLEEP, start_new_session=True)
    # Popen may return in the middle of the exec, when the command line is still empty.
    while (seen := identity_of(left.pid)) is None or seen.command != tuple(SLEEP):
        time.sleep(0.01)
    killed.record({"u0": seen})
    (killed.run / "u0-1").mkdir()
    os.close(killed._lock or -1)  # as the kernel does for a killed process
    data = DataDir(tmp_path / "d")
    found = data.claim()
    assert [identity.pid for identity in found.processes] == [left.pid]
    assert found.run_folders == ("u0-1",)
    assert left.wait(10) == -signal.SIGKILL
    assert not list(data.run.iterdir())
    data.release()


def test_a_broken_process_record_is_as_none(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "d")
    data.root.mkdir()
    (data.root / "processes.json").write_text(json.dumps({"a": {"pid": "x"}, "b": 3}))
    assert data.claim().processes == ()
    data.release()


def test_a_long_data_directory_gets_a_short_run_folder(tmp_path: Path) -> None:
    data = DataDir(tmp_path / ("d" * 80))
    data.claim()
    assert len(str(data.run)) < 60
    assert data.run.stat().st_mode & 0o777 == 0o700
    data.release()


def test_drawn_ports_differ_and_are_free() -> None:
    ports = Ports().draw(8)
    assert len(set(ports)) == 8
    for port in ports:
        require_free(port)


def test_a_port_in_use_is_refused_with_the_fix() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(SpecError, match=rf"--port {port}: in use .*give another --port"):
            require_free(port)


def test_an_impossible_port_is_refused() -> None:
    with pytest.raises(SpecError, match="1 to 65535"):
        require_free(70000)


def test_the_launcher_refuses_when_its_parent_is_gone() -> None:
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", processes._TIED, "1", *SLEEP],
                         capture_output=True, text=True, timeout=30)  # fmt: skip
    assert ran.returncode == 1
    assert "the parent ended" in ran.stderr
