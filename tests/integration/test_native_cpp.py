"""The C++ tests of csrc, under the address and undefined-behaviour sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
BUILD = CSRC / "build" / "test"


@pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "ninja", "c++"))), reason="needs cmake, ninja and c++"
)
def test_the_cpp_cases_pass_under_sanitizers() -> None:
    """Rebuilds only what changed since the last time."""
    configure = [
        "cmake", "-S", str(CSRC), "-B", str(BUILD), "-G", "Ninja", "-DMUX_TESTS=ON",
        "-DCMAKE_BUILD_TYPE=Debug", "-DMUX_SANITIZE=address,undefined",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(BUILD)]):
        subprocess.run(command, check=True, capture_output=True)
    tests = subprocess.run([BUILD / "mux_tests"], capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout + tests.stderr
