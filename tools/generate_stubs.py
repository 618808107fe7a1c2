"""Generates the control protocol's stubs into both shells, which may not import each other.

    python tools/generate_stubs.py            write
    python tools/generate_stubs.py --check    exit 1 when what is committed differs

Both copies describe the same file `control.proto`, so a process that loads both (the `muxserve`
command, the tests) registers it once; message classes are then the very same objects.
"""

import importlib.resources
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

from grpc_tools import protoc

ROOT: Final = Path(__file__).resolve().parent.parent
PROTO: Final = ROOT / "core/mux_core/control.proto"
TARGETS: Final = {
    "mux_runtime.control": ROOT / "runtime/mux_runtime/control",
    "mux_operator.control_stubs": ROOT / "operator/mux_operator/control_stubs",
}
FILES: Final = ("control_pb2.py", "control_pb2.pyi", "control_pb2_grpc.py", "control_pb2_grpc.pyi")
_RPC: Final = re.compile(r"rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\)")
_SERVICE: Final = re.compile(r"service (\w+) \{(.*?)\n\}", re.DOTALL)


def generate() -> dict[Path, str]:
    """Every generated file with its text; writes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        _run_protoc(folder)
        plain = {name: (Path(folder) / name).read_text() for name in FILES[:3]}
    # protoc leaves the parameters of Mapping out, which strict type checking refuses.
    plain[FILES[1]] = re.sub(r"_Mapping\]", "_Mapping[str, _Any]]", plain[FILES[1]]).replace(
        "from typing import ", "from typing import Any as _Any, ", 1
    )
    out: dict[Path, str] = {}
    for package, target in TARGETS.items():
        texts = {**plain, FILES[3]: _typed_stubs(PROTO.read_text(), package)}
        texts[FILES[2]] = texts[FILES[2]].replace(
            "import control_pb2 as control__pb2",
            f"from {package} import control_pb2 as control__pb2",
        )
        out |= {target / name: text for name, text in texts.items()}
    return out


def _run_protoc(folder: str) -> None:
    wellknown = importlib.resources.files("grpc_tools") / "_proto"
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{PROTO.parent}", f"-I{wellknown}", *outputs, str(PROTO)])
    if code:
        raise SystemExit(f"protoc ended with {code} on {PROTO}")


def _typed_stubs(proto: str, package: str) -> str:
    """Types of the grpc module for `grpc.aio`; grpc's own plugin writes none."""
    lines = [
        '"""Types of control_pb2_grpc for grpc.aio; generated, see tools/generate_stubs.py."""',
        "",
        "from collections.abc import AsyncIterator",
        "",
        "import grpc.aio",
        "",
        f"from {package} import control_pb2 as pb",
    ]
    for service, body in _SERVICE.findall(proto):
        calls = _RPC.findall(body)
        lines += ["", f"class {service}Stub:",
                  "    def __init__(self, channel: grpc.aio.Channel) -> None: ..."]  # fmt: skip
        lines += [_stub_method(*call) for call in calls]
        lines += ["", f"class {service}Servicer:"]
        lines += [_servicer_method(*call) for call in calls]
        lines += ["", f"def add_{service}Servicer_to_server("]
        lines += [f"    servicer: {service}Servicer, server: grpc.aio.Server", ") -> None: ..."]
    return "\n".join(lines) + "\n"


def _stub_method(name: str, request: str, stream: str, reply: str) -> str:
    kind = "UnaryStreamCall" if stream else "UnaryUnaryCall"
    return f"""    def {name}(
        self,
        request: pb.{request},
        *,
        timeout: float | None = ...,
        wait_for_ready: bool | None = ...,
    ) -> grpc.aio.{kind}[pb.{request}, pb.{reply}]: ..."""


def _servicer_method(name: str, request: str, stream: str, reply: str) -> str:
    kind, result = ("def", f"AsyncIterator[pb.{reply}]") if stream else ("async def", f"pb.{reply}")
    return f"""    {kind} {name}(
        self,
        request: pb.{request},
        context: grpc.aio.ServicerContext[pb.{request}, pb.{reply}],
    ) -> {result}: ..."""


def main() -> int:
    files = generate()
    if "--check" not in sys.argv[1:]:
        for path, text in files.items():
            path.write_text(text)
        return 0
    stale = [p for p, text in files.items() if not p.exists() or p.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is stale; run python tools/generate_stubs.py")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
