"""The committed stubs are what the protocol says, and both shells may live in one process."""

import subprocess
import sys
from pathlib import Path

from mux_operator.control_stubs import control_pb2 as operator_pb
from mux_runtime.control import control_pb2 as runtime_pb

ROOT = Path(__file__).resolve().parents[3]


def test_committed_stubs_equal_generated_ones() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/generate_stubs.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_shells_speak_the_same_messages_in_one_process() -> None:
    sent = operator_pb.ApplyRequest(spec_json="{}").SerializeToString()
    assert runtime_pb.ApplyRequest.FromString(sent).spec_json == "{}"
