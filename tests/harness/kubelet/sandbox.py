"""Process 1 of a container: lays out its file system, then becomes the container's command.

Runs as a script in fresh mount and process namespaces, with the standard library alone and
without site packages, because it stands before every container start. The container sees this
machine's files at their places, its volumes at their real paths (also where the machine has no
such folder), an own /proc, a minimal /dev and the pod's /dev/shm.
"""

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/mnt")  # hidden in the container: what is mounted here must not contain itself

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC = 32, 4096, 16384
_KEPT_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_OWN_TREES = ("proc", "dev", ROOT.name)

_libc = ctypes.CDLL(None, use_errno=True)


class Bind(NamedTuple):
    """A file or folder of this machine that the container sees at `target`."""

    source: str
    target: str
    read_only: bool = False


def mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    encoded = (source.encode(), str(target).encode(), kind.encode(), flags, options.encode())
    if _libc.mount(*encoded) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def unmount(target: Path) -> None:
    """Detach at once, users or not."""
    _libc.umount2(str(target).encode(), 2)


def bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    # Recursive always: a mount inherited from another user namespace cannot leave its children.
    mount(str(source), target, "", MS_BIND | MS_REC)
    if read_only:
        # Flags that the source's mount carries are locked here and must be named again.
        kept = os.statvfs(target).f_flag & _KEPT_FLAGS
        mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def expose(real: Path, copy: Path, targets: Sequence[Path]) -> None:
    """Make `copy` show what `real` holds, with room for every target below it."""
    for entry in sorted(real.iterdir()):
        if real == Path("/") and entry.name in _OWN_TREES:
            continue
        inside = [target for target in targets if entry in target.parents]
        if entry.is_symlink():
            (copy / entry.name).symlink_to(os.readlink(entry))
        elif all(target.exists() for target in inside):
            _bind_entry(entry, copy / entry.name)
        else:
            (copy / entry.name).mkdir()
            expose(entry, copy / entry.name, inside)


def _bind_entry(entry: Path, place: Path) -> None:
    if not entry.is_dir() and not entry.is_file():
        return  # sockets and devices of the machine are no business of a container
    _make_place(entry, place)
    bind(entry, place)


def _make_place(source: Path, place: Path) -> None:
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        place.mkdir()
    else:
        place.touch()


def make_devices(folder: Path, shared_memory: str) -> None:
    folder.mkdir()
    mount("tmpfs", folder, "tmpfs", MS_NOSUID, "mode=755")
    for name in _DEVICES:
        (folder / name).touch()
        bind(Path("/dev") / name, folder / name)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (folder / name).symlink_to(f"/proc/self/fd/{number}")
    (folder / "fd").symlink_to("/proc/self/fd")
    (folder / "shm").mkdir()
    bind(Path(shared_memory), folder / "shm")


def lay_out(binds: Sequence[Bind], shared_memory: str) -> None:
    """Build the container's root under ROOT and enter it."""
    # Shallow first, so that a volume inside a volume lies on top.
    ordered = sorted(binds, key=lambda item: item.target.count("/"))
    resolved = [Path(os.path.realpath(item.target)) for item in ordered]
    mount("tmpfs", ROOT, "tmpfs", 0, "mode=755")
    expose(Path("/"), ROOT, resolved)
    make_devices(ROOT / "dev", shared_memory)
    (ROOT / "proc").mkdir()
    mount("proc", ROOT / "proc", "proc")
    (ROOT / ROOT.name).mkdir(exist_ok=True)
    for item, target in zip(ordered, resolved, strict=True):
        place = ROOT / target.relative_to("/")
        _make_place(Path(item.source), place)
        bind(Path(item.source), place, read_only=item.read_only)
    os.chroot(ROOT)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    lay_out([Bind(*item) for item in plan["binds"]], plan["shared_memory"])
    os.chdir(plan["folder"])
    argv: list[str] = plan["argv"]
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"cannot run {argv[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
