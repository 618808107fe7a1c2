"""A client process of the pool owner for tests: one command a line in, one JSON answer a line out.

python kvpool_child.py SOCKET
"""

import ctypes
import json
import mmap
import sys
from typing import Any

import numpy as np

from mux_core.errors import MuxError
from mux_runtime.kvpool.client import Arena, PoolClient, WeightArena


class Child:
    """Keeps the arenas it mapped by name; the KV arena is `kv`."""

    def __init__(self, client: PoolClient) -> None:
        self.client = client
        self.arenas: dict[str, Arena] = {}

    def kv(self) -> int:
        self.arenas["kv"] = self.client.map_kv()
        return self.arenas["kv"].nbytes

    def attach(self, name: str, nbytes: int) -> list[str]:
        arena = self.client.attach(name, nbytes)
        assert isinstance(arena, WeightArena)
        self.arenas[name] = arena
        return [arena.role.value, arena.digest]

    def write(self, name: str, at: int, text: str) -> int:
        self.arenas[name].buffer[at : at + len(text)] = text.encode()
        return len(text)

    def read(self, name: str, at: int, length: int) -> str:
        return self.arenas[name].buffer[at : at + length].decode("latin1")

    def seal(self, name: str, digest: str) -> None:
        self.client.seal(name, digest)

    def protect(self, name: str) -> int:
        """Asks the kernel for write access to a mapping; 0 is granted, else errno."""
        libc = ctypes.CDLL(None, use_errno=True)
        length, wanted = ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_WRITE
        granted = libc.mprotect(ctypes.c_void_p(self._address(name)), length, wanted)
        return 0 if granted == 0 else ctypes.get_errno()

    def poke(self, name: str) -> None:
        """Writes past Python, as a kernel or torch would."""
        ctypes.memset(self._address(name), 1, 1)

    def _address(self, name: str) -> int:
        return int(np.frombuffer(self.arenas[name].buffer, dtype=np.uint8).ctypes.data)


def main() -> None:
    child = Child(PoolClient.connect(sys.argv[1]))
    print(json.dumps("connected"), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answer: Any
        try:
            answer = getattr(child, name)(*arguments)
        except (MuxError, TypeError) as error:
            answer = {"raised": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
