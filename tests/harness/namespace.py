"""The private place where a test cluster lives: own network, processes and mounts.

Everything that belongs to a cluster runs inside one user, network, process and mount namespace:
the control plane, the pods, the operator and the pytest process itself. Ports therefore never
clash with the machine's, pods have real addresses of their own on the loopback device, no root
is needed, and when the namespace's first process ends the kernel ends all others: nothing can
outlive a test run, however it ends.

`python -m harness.namespace COMMAND...` runs a command in a fresh one.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

import psutil

POD_NETWORK = "10.244.136.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"  # the API server gives itself the network's first address
DNS_SERVICE = "10.96.0.10"
OUTER_PID = "MUXSERVE_NAMESPACE_PID"

_PROBE_ADDRESS = "10.244.136.254"
_PRIVATE = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_AS_USER = ("--user", "--map-root-user")
# The process that enters keeps its id through every exec: outside, it is the door for `nsenter`.
_ANNOUNCE = f'export {OUTER_PID}=$$; exec setpriv --pdeathsig KILL "$@"'
# The shell stays as process 1: it collects orphans and passes the command's exit code on.
_SETUP = (
    "set -e; ip link set lo up; "
    f"ip route add local {POD_NETWORK} dev lo; ip route add local {SERVICE_NETWORK} dev lo; "
    'set +e; "$@"; exit $?'
)


class NamespaceError(Exception):
    """This machine cannot make the namespace; the message says what to change."""


def is_inside() -> bool:
    """Whether this process is in such a namespace: only there a pod address can be bound."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind((_PROBE_ADDRESS, 0))
        except OSError:
            return False
    return True


def command(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` inside a fresh namespace."""
    return ["unshare", *_flags(), "--", "sh", "-c", _SETUP, "sh", *argv]


def enter(argv: Sequence[str]) -> NoReturn:
    """Replace this process by one that runs `argv` inside a fresh namespace."""
    command(argv)  # raises now when it cannot be done
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", __file__, *argv])


def run(argv: Sequence[str]) -> int:
    """Run `argv` inside, pass SIGTERM on to it, return its exit code.

    `unshare` itself would swallow the signal. Ctrl-C needs no help: the terminal sends it to all.
    """
    environment = os.environ | {"NO_PROXY": "*", "no_proxy": "*"}
    inside = subprocess.Popen(["sh", "-c", _ANNOUNCE, "sh", *command(argv)], env=environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: _forward(inside.pid, number))
    code = inside.wait()
    return 128 - code if code < 0 else code


def _forward(outer: int, number: int) -> None:
    # Below `unshare` are the shell, process 1 inside, and below that the command.
    descendants = psutil.Process(outer).children(recursive=True)
    if len(descendants) > 1:
        descendants[1].send_signal(number)
    else:
        psutil.Process(outer).kill()


def door() -> str:
    """The command that opens a shell inside, for a person outside."""
    pid = os.environ.get(OUTER_PID, "$PID")
    user = "--user --preserve-credentials " if _is_possible(_AS_USER) else ""
    return f"nsenter --target {pid} {user}--net"


def _flags() -> tuple[str, ...]:
    for extra in (_AS_USER, ()):
        if _is_possible(extra):
            return (*extra, *_PRIVATE)
    raise NamespaceError(
        "`unshare --user --map-root-user --net --pid --fork --mount-proc true` fails here: "
        "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0) or run as root"
    )


def _is_possible(extra: tuple[str, ...]) -> bool:
    line = ["unshare", *extra, *_PRIVATE, "true"]
    try:
        return subprocess.run(line, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        raise NamespaceError("the command `unshare` (util-linux) is not on PATH") from None


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:] or [os.environ.get("SHELL", "sh")]))
    except NamespaceError as error:
        sys.exit(f"namespace: {error}")
