"""GPU memory that one process makes and others map: the driver's calls, and a stand-in on memfd.

`CudaMemory` is cuda.h by ctypes. `FakeMemory` keeps the same promises in host memory, so that the
script and its processes run without a GPU; it refuses what a driver refuses: mapping something
else than a whole handle, or writing where only reading was asked for.
"""

import ctypes
import mmap
import os
from typing import Any, Protocol

PINNED, POSIX_FD, ON_DEVICE = 1, 1, 1
READ, READ_WRITE = 1, 3
"""CU_MEM_ALLOCATION_TYPE_PINNED and so on, as in cuda.h."""


class DriverError(RuntimeError):
    """A call that failed: its name and the code that cuda.h explains."""


class Memory(Protocol):
    """Handles are memory that nobody need have mapped; pointers are where it is mapped."""

    def attach(self) -> None:
        """Makes a context. Only who reads or writes needs one."""
        ...

    def create(self, nbytes: int) -> int: ...
    def export(self, handle: int) -> int: ...
    def take(self, fd: int, nbytes: int) -> int: ...
    def map(self, handles: list[int], nbytes: int, *, writable: bool) -> int:
        """Maps handles of `nbytes` each behind one another."""
        ...

    def write(self, pointer: int, data: bytes) -> None: ...
    def read(self, pointer: int, count: int) -> bytes: ...
    def fill(self, pointer: int, value: int, count: int) -> None:
        """Writes by a kernel, which a read-only mapping answers with a fault."""
        ...


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Flags(ctypes.Structure):
    _fields_ = (("compression", ctypes.c_ubyte), ("rdma", ctypes.c_ubyte),
                ("usage", ctypes.c_ushort), ("reserved", ctypes.c_ubyte * 4))  # fmt: skip


class AllocationProp(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (("type", ctypes.c_int), ("handle_types", ctypes.c_int), ("location", _Location),
                ("win32", ctypes.c_void_p), ("flags", _Flags))  # fmt: skip


class AccessDesc(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class CudaMemory:
    """Keeps `Memory` by the CUDA driver, on the first GPU."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._device = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._location = _Location(ON_DEVICE, self._device.value)

    def attach(self) -> None:
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def create(self, nbytes: int) -> int:
        handle = ctypes.c_ulonglong()
        prop = AllocationProp(PINNED, POSIX_FD, self._location)
        self._call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(nbytes),
                   ctypes.byref(prop), ctypes.c_ulonglong(0))  # fmt: skip
        return handle.value

    def export(self, handle: int) -> int:
        fd = ctypes.c_int()
        self._call("cuMemExportToShareableHandle", ctypes.byref(fd), ctypes.c_ulonglong(handle),
                   POSIX_FD, ctypes.c_ulonglong(0))  # fmt: skip
        return fd.value

    def take(self, fd: int, nbytes: int) -> int:
        handle = ctypes.c_ulonglong()
        self._call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(fd),
                   POSIX_FD)  # fmt: skip
        return handle.value

    def map(self, handles: list[int], nbytes: int, *, writable: bool) -> int:
        base = ctypes.c_ulonglong()
        whole = ctypes.c_size_t(nbytes * len(handles))
        self._call("cuMemAddressReserve", ctypes.byref(base), whole, ctypes.c_size_t(0),
                   ctypes.c_ulonglong(0), ctypes.c_ulonglong(0))  # fmt: skip
        for index, handle in enumerate(handles):
            at = ctypes.c_ulonglong(base.value + index * nbytes)
            self._call("cuMemMap", at, ctypes.c_size_t(nbytes), ctypes.c_size_t(0),
                       ctypes.c_ulonglong(handle), ctypes.c_ulonglong(0))  # fmt: skip
        access = AccessDesc(self._location, READ_WRITE if writable else READ)
        self._call("cuMemSetAccess", base, whole, ctypes.byref(access), ctypes.c_size_t(1))
        return base.value

    def write(self, pointer: int, data: bytes) -> None:
        self._call("cuMemcpyHtoD_v2", ctypes.c_ulonglong(pointer), data, ctypes.c_size_t(len(data)))

    def read(self, pointer: int, count: int) -> bytes:
        target = ctypes.create_string_buffer(count)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_ulonglong(pointer), ctypes.c_size_t(count))
        return target.raw

    def fill(self, pointer: int, value: int, count: int) -> None:
        self._call("cuMemsetD8_v2", ctypes.c_ulonglong(pointer), ctypes.c_ubyte(value),
                   ctypes.c_size_t(count))  # fmt: skip
        self._call("cuCtxSynchronize")

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            raise DriverError(f"{name} failed with {code}")


class FakeMemory:
    """Keeps `Memory` in host memory: a handle is a memfd, a pointer a place in a range of maps."""

    def __init__(self) -> None:
        self._maps: dict[int, tuple[list[mmap.mmap], int, bool]] = {}
        self._next = 1 << 40

    def attach(self) -> None:
        return

    def create(self, nbytes: int) -> int:
        fd = os.memfd_create("gpu")
        os.ftruncate(fd, nbytes)
        return fd

    def export(self, handle: int) -> int:
        return os.dup(handle)

    def take(self, fd: int, nbytes: int) -> int:
        if os.fstat(fd).st_size != nbytes:
            raise DriverError("cuMemImportFromShareableHandle failed with 1")
        return os.dup(fd)

    def map(self, handles: list[int], nbytes: int, *, writable: bool) -> int:
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        maps = [mmap.mmap(handle, nbytes, prot=prot) for handle in handles]
        base, self._next = self._next, self._next + nbytes * len(handles)
        self._maps[base] = (maps, nbytes, writable)
        return base

    def write(self, pointer: int, data: bytes) -> None:
        memory, offset, writable = self._at(pointer)
        if not writable:
            raise DriverError("cuMemcpyHtoD_v2 failed with 1")
        memory[offset : offset + len(data)] = data

    def read(self, pointer: int, count: int) -> bytes:
        memory, offset, _ = self._at(pointer)
        return memory[offset : offset + count]

    def fill(self, pointer: int, value: int, count: int) -> None:
        if not self._at(pointer)[2]:
            raise DriverError("cuCtxSynchronize failed with 700")
        self.write(pointer, bytes([value]) * count)

    def _at(self, pointer: int) -> tuple[mmap.mmap, int, bool]:
        base = max(start for start in self._maps if start <= pointer)
        maps, nbytes, writable = self._maps[base]
        index, offset = divmod(pointer - base, nbytes)
        return maps[index], offset, writable
