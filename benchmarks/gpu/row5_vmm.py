"""Row 5: an owner without a context exports GPU memory, importers map it, the owner is killed.

    python3 benchmarks/gpu/row5_vmm.py        (--faults: also writes by kernel to a read-only map)

About 2 minutes. Decides who owns KV pool and weights: whether memory can be made without a context,
how long mapping takes, whether read-only mappings are enforced, and whether memory outlives its
owner while somebody holds a mapping or only a descriptor.
"""

import os
import socket
import tempfile
from pathlib import Path

from record import Recorder, arguments, run
from shares import Child, mps
from vmm_child import AT_ONCE

MARK = "written by the first importer"
SIZES = {"cuda": (32, 1 << 30), "cpu": (3, 1 << 20)}


class Exchange:
    """This process as the supervisor: holds duplicates of all descriptors, hands them out."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self.fds: list[int] = []

    def close(self) -> None:
        """Lets go of the memory, if this was the last to hold it."""
        self._listener.close()
        for fd in self.fds:
            os.close(fd)

    def collect(self, owner: Child, handles: int) -> None:
        owner.tell(do="give", path=self.path)
        sock, _ = self._listener.accept()
        with sock:
            while len(self.fds) < handles:
                self.fds += socket.recv_fds(sock, 1, AT_ONCE)[1]
                sock.sendall(b"x")
        owner.answer()

    def map(self, importer: Child, nbytes: int, *, writable: bool) -> dict[str, float]:
        importer.tell(do="map", path=self.path, handles=len(self.fds), nbytes=nbytes,
                      writable=writable)  # fmt: skip
        sock, _ = self._listener.accept()
        with sock:
            for start in range(0, len(self.fds), AT_ONCE):
                socket.send_fds(sock, [b"x"], self.fds[start : start + AT_ONCE])
                sock.recv(1)
        return dict(importer.answer())


def used_mib() -> str:
    return run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader"])[1].strip()


def readable(record: Recorder, what: str, importer: Child, at: int) -> None:
    with record.attempt(what):
        record.fact(what, importer.ask(do="read", at=at, count=len(MARK)) == MARK)


def share(record: Recorder, exchange: Exchange, device: str, environment: dict[str, str],
          outside: dict[str, str]) -> None:  # fmt: skip
    """Owner, two importers, a mapping to read only; then the owner is killed."""
    handles, nbytes = SIZES[device]
    last = (handles - 1) * nbytes
    child = ("vmm_child.py", [device])
    with Child(*child, outside) as owner:
        seconds = owner.ask(do="create", handles=handles, nbytes=nbytes)
        record.values(
            "create without a context", [s * 1e6 for s in seconds], unit="us", nbytes=nbytes
        )
        exchange.collect(owner, handles)
        with Child(*child, environment) as first, Child(*child, environment) as second:
            for name, importer, writable in (("first", first, True), ("second", second, False)):
                times = exchange.map(importer, nbytes, writable=writable)
                for step, took in times.items():
                    record.values(step, [took], unit="s", importer=name, handles=handles,
                                  nbytes=nbytes, writable=writable)  # fmt: skip
            first.ask(do="write", at=last, text=MARK)
            readable(record, "the second importer reads what the first wrote", second, last)
            refused(record, "copy into a read-only mapping", second, do="write", at=0, text=MARK)
            owner.process.kill()
            owner.process.wait()
            readable(record, "mapped memory outlives its owner", first, last)
            with Child(*child, environment) as late:
                with record.attempt("descriptors map after the owner's death"):
                    exchange.map(late, nbytes, writable=True)
                readable(record, "a descriptor kept the memory after the owner's death", late, last)


def refused(record: Recorder, what: str, importer: Child, **command: object) -> None:
    """Whether a call that must fail did."""
    try:
        importer.ask(**command)
    except RuntimeError as error:
        record.fact(f"{what} is refused", True, how=str(error))
    else:
        record.fact(f"{what} is refused", False)


def fault(record: Recorder, exchange: Exchange, device: str, outside: dict[str, str]) -> None:
    """A kernel writes where only reading was asked for. Its context dies, so it comes last."""
    with Child("vmm_child.py", [device], outside) as reader:
        exchange.map(reader, SIZES[device][1], writable=False)
        refused(record, "a kernel's write into a read-only mapping", reader, do="fill", at=0,
                count=4096)  # fmt: skip


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], seconds=150)
    parser.add_argument("--faults", action="store_true", help="end with a fault, once")
    args = parser.parse_args()
    with Recorder(5, "vmm", args) as record, tempfile.TemporaryDirectory() as folder:
        record.fact("memory used before", used_mib())
        with mps(record) as shares:
            for inside in (False, True) if shares.control is not None else (False,):
                exchange = Exchange(Path(folder) / ("in" if inside else "out"))
                environment = shares.environment(50) if inside else shares.outside
                record.fact("importers now", "under MPS" if inside else "without MPS")
                with record.attempt("share", importers_under_mps=inside):
                    share(record, exchange, args.device, environment, shares.outside)
                if args.faults and not inside:
                    with record.attempt("fault"):
                        fault(record, exchange, args.device, shares.outside)
                exchange.close()
        record.fact("memory used after", used_mib())
        record.shows(truths(record))


def truths(record: Recorder) -> str:
    """Everything that was found true or false, in order."""
    found = [(m["what"], m["value"]) for m in record.document["measurements"]
             if m.get("value") in (True, False)]  # fmt: skip
    return "; ".join(f"{what}: {'yes' if yes else 'NO'}" for what, yes in found) or "nothing"


if __name__ == "__main__":
    main()
