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
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

POD_NETWORK = "10.244.136.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"  # the API server gives itself the network's first address
DNS_SERVICE = "10.96.0.10"
OUTER_PID = "MUXSERVE_NAMESPACE_PID"

_PROBE_ADDRESS = "10.244.136.254"
_PRIVATE = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_AS_USER = ("--user", "--map-root-user")
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
    """Replace this process by `argv` inside a fresh namespace."""
    line = command(argv)
    # The process that enters keeps its id: from outside it is the door for `nsenter`.
    os.environ[OUTER_PID] = str(os.getpid())
    # There is no way out of it: a proxy of the machine would only swallow local requests.
    os.environ |= {"NO_PROXY": "*", "no_proxy": "*"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(line[0], line)


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
    enter(sys.argv[1:] or [os.environ.get("SHELL", "sh")])
