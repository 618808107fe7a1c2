"""Row 0: what this machine is, and whether MPS can be tried on it at all.

    python3 benchmarks/gpu/row0_facts.py

About 1 minute. Decides whether shares are possible here: control program, a daemon of our own as
root and as an ordinary user, a client of each, what the client list and `ps` print.
"""

import os
import shutil
import subprocess
import sys
import time

from record import Recorder, arguments, run
from shares import mps

from mux_runtime.sm.mps import PROGRAM, MpsControl, MpsUnavailable

NOBODY = 65534
COMMANDS = (
    "get_server_list",
    "get_default_active_thread_percentage",
    "ps",
    "get_device_client_list",
)
CLIENT = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, context, count = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
for call in (lambda: cuda.cuInit(0), lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
             lambda: cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
             lambda: cuda.cuDeviceGetAttribute(ctypes.byref(count), 16, device)):
    code = call()
    if code:
        sys.exit(f"driver error {code}")
print(count.value, flush=True)
sys.stdin.read()
"""


def machine(record: Recorder) -> None:
    """What tools print, as they print it."""
    for line in ("nvidia-smi -q", "nvidia-smi", "nvcc --version", "id", "uname -a",
                 "df -h /dev/shm /tmp", "free -g"):  # fmt: skip
        code, text = run(line.split())
        record.fact(line, text[:40_000], code=code)
    record.fact("place of the control program", shutil.which(PROGRAM))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "NVIDIA_DRIVER_CAPABILITIES"):
        record.fact(name, os.environ.get(name))


def daemon(record: Recorder, who: str, user: int | None) -> bool:
    """Start, a client, its lists, quit; whether it worked."""
    begun = time.monotonic()
    with mps(record, user=user) as shares:
        if shares.control is None:
            return False
        record.values("daemon up", [time.monotonic() - begun], unit="s", user=who)
        worked = client(record, shares.control, shares.environment(30), who, user)
        record.fact("log files", [p.name for p in shares.control.paths.logs.glob("*")], user=who)
        begun = time.monotonic()
    record.values("quit", [time.monotonic() - begun], unit="s", user=who)
    return worked


def client(record: Recorder, control: MpsControl, environment: dict[str, str], who: str,
           user: int | None) -> bool:  # fmt: skip
    """A client at 30 % and what the daemon says of it."""
    own = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}, cwd="/", **own,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    record.fact("SMs seen by a client at 30 %", said, user=who, pid=process.pid)
    listed = False
    with record.attempt("client list", user=who):
        clients = control.clients()
        listed = process.pid in clients
        record.fact("clients", sorted(clients), user=who, ours=process.pid, listed=listed)
    for command in COMMANDS:
        with record.attempt(command, user=who):
            try:
                record.fact(command, control.ask(command), user=who)
            except MpsUnavailable as error:
                record.failure(command, error, user=who)
    process.stdin.close()
    process.wait(30)
    process.stdout.close()
    return said.isdigit() and listed


def main() -> None:
    args = arguments(__doc__.splitlines()[0], seconds=60).parse_args()
    with Recorder(0, "facts", args) as record:
        machine(record)
        worked = {"this user": daemon(record, "this user", None)}
        if os.getuid() == 0:
            worked["nobody"] = daemon(record, "nobody", NOBODY)
        names = [who for who, yes in worked.items() if yes]
        record.shows(f"MPS works here as {' and '.join(names)}" if names
                     else "MPS does not work here; shares are unsupported")  # fmt: skip


if __name__ == "__main__":
    main()
