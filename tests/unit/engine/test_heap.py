"""What a step frees stays with its process: the next one takes no page faults for it."""

import subprocess
import sys

import pytest

_STEPS = """
import ctypes, resource, sys
from mux_runtime.engines.torch.heap import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("no mallopt here")
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def step():
    blocks = [libc.malloc(1 << 20) for _ in range(6)]
    for block in blocks:
        libc.memset(block, 1, 1 << 20)
    for block in blocks:
        libc.free(block)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

step()
before = faults()
for _ in range(10):
    step()
print((faults() - before) // 10)
"""


def _faults_per_step(mode: str) -> int:
    found = subprocess.run([sys.executable, "-c", _STEPS, mode], capture_output=True, text=True,
                           check=False)  # fmt: skip
    if found.returncode:
        pytest.skip(found.stderr.strip().splitlines()[-1])
    return int(found.stdout)


def test_a_steps_memory_is_not_fetched_from_the_kernel_again() -> None:
    assert _faults_per_step("kept") < 10
    assert _faults_per_step("as it comes") > 500  # six MiB are 1,536 pages: the test can see it
