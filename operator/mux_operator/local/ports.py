"""Free TCP ports of 127.0.0.1; one door, so that two units never draw the same."""

import errno
import socket
from collections.abc import Iterable

from mux_core.errors import SpecError

HOST = "127.0.0.1"


class Ports:
    """Draws ports nobody listens on; one drawn is not drawn again until given back."""

    def __init__(self) -> None:
        self._drawn: set[int] = set()

    def draw(self, count: int) -> tuple[int, ...]:
        """`count` different free ports. Another process may still take one before it is bound."""
        sockets: list[socket.socket] = []
        found: list[int] = []
        try:
            while len(found) < count:
                listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                sockets.append(listening)
                listening.bind((HOST, 0))
                port = int(listening.getsockname()[1])
                if port not in self._drawn:
                    found.append(port)
        finally:
            for listening in sockets:
                listening.close()
        self._drawn.update(found)
        return tuple(found)

    def give_back(self, ports: Iterable[int]) -> None:
        self._drawn.difference_update(ports)


def require_free(port: int) -> None:
    """Raises SpecError when the port cannot be listened on, saying why and what to do."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OverflowError:
            raise SpecError(f"--port {port}: not a port; 1 to 65535, or 0 to draw one") from None
        except PermissionError:
            raise SpecError(
                f"--port {port}: not allowed for this user; use one above 1023"
            ) from None
        except OSError as error:
            what = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
            raise SpecError(f"--port {port}: {what} on {HOST}; stop what listens there or give "
                            "another --port (0 draws a free one)") from None  # fmt: skip
