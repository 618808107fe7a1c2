"""A process of row 5: owner or importer of GPU memory, told one call at a time."""

import socket
import sys
import time

from shares import serve
from vmm import CudaMemory, FakeMemory, Memory

AT_ONCE = 64
"""Descriptors in one message; the kernel allows 253."""


class Holder:
    """Handles, and one range in which they are mapped."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.handles, self.base = memory, list[int](), 0

    def create(self, handles: int, nbytes: int) -> list[float]:
        """Seconds of each; no context is made."""
        seconds = []
        for _ in range(handles):
            begun = time.perf_counter()
            self.handles.append(self.memory.create(nbytes))
            seconds.append(time.perf_counter() - begun)
        return seconds

    def give(self, path: str) -> int:
        """Exports all handles to whoever listens there."""
        fds = [self.memory.export(handle) for handle in self.handles]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            for start in range(0, len(fds), AT_ONCE):
                socket.send_fds(sock, [b"x"], fds[start : start + AT_ONCE])
                sock.recv(1)
        return len(fds)

    def map(self, path: str, handles: int, nbytes: int, writable: bool) -> dict[str, float]:
        """Imports as many handles and maps them; seconds of both and of making a context."""
        fds: list[int] = []
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            while len(fds) < handles:
                fds += socket.recv_fds(sock, 1, AT_ONCE)[1]
                sock.sendall(b"x")
        times = [time.perf_counter()]
        self.memory.attach()
        times.append(time.perf_counter())
        self.handles = [self.memory.take(fd, nbytes) for fd in fds]
        times.append(time.perf_counter())
        self.base = self.memory.map(self.handles, nbytes, writable=writable)
        times.append(time.perf_counter())
        names = ("context", "import", "map")
        return {name: b - a for name, a, b in zip(names, times, times[1:], strict=False)}

    def write(self, at: int, text: str) -> bool:
        self.memory.write(self.base + at, text.encode())
        return True

    def read(self, at: int, count: int) -> str:
        return self.memory.read(self.base + at, count).decode(errors="replace")

    def fill(self, at: int, count: int) -> bool:
        self.memory.fill(self.base + at, 0x5A, count)
        return True


def main() -> None:
    holder = Holder(CudaMemory() if sys.argv[1] == "cuda" else FakeMemory())
    serve({name: getattr(holder, name) for name in
           ("create", "give", "map", "write", "read", "fill")})  # fmt: skip


if __name__ == "__main__":
    main()
