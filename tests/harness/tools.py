"""Builds the real parts the tests run on, once, from pinned Go modules outside the checkout.

Each folder under `tests/tools/` is a Go module that pins one tool set: what is built from it,
and with which version flags, is listed here. A finished build lies in a folder named after the
pins, so changing a pin builds anew and an old checkout keeps finding its own tools.
`K8S_BIN=folder` gives ready binaries instead.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).resolve().parent.parent / "tools"


class ToolError(Exception):
    """A tool is missing or cannot be built; the message names the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSet:
    """Commands built from one pinned module, by binary name and package path."""

    module: str
    packages: dict[str, str]
    variables: dict[str, str]

    @property
    def linker_flags(self) -> str:
        stamps = (f"-X {name}={value}" for name, value in self.variables.items())
        return " ".join(("-s -w", *stamps))


_VERSION = "k8s.io/component-base/version"
TOOL_SETS = (
    ToolSet(
        module="etcd",
        packages={"etcd": "go.etcd.io/etcd/server/v3"},
        variables={},
    ),
    ToolSet(
        module="kubernetes",
        packages={
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubectl",
            )
        },
        # Without them kubectl cannot parse the version, and discovery reports v0.0.0.
        variables={
            f"{_VERSION}.gitVersion": "v1.36.4",
            f"{_VERSION}.gitMajor": "1",
            f"{_VERSION}.gitMinor": "36",
            f"{_VERSION}.gitTreeState": "clean",
        },
    ),
    ToolSet(
        module="helm",
        packages={"helm": "helm.sh/helm/v4/cmd/helm"},
        variables={"helm.sh/helm/v4/internal/version.version": "v4.3.0"},
    ),
)


def folder() -> Path:
    """Where the tools for the pins of this checkout belong, built or not."""
    override = os.environ.get("K8S_BIN")
    if override:
        return Path(override).expanduser().resolve()
    root = Path(os.environ.get("MUXSERVE_TOOLS", "~/.cache/muxserve/tools")).expanduser()
    return root / fingerprint()


def fingerprint() -> str:
    """Changes with every pin and with every build flag."""
    digest = hashlib.sha256()
    for tool_set in TOOL_SETS:
        digest.update(f"{tool_set.packages}{tool_set.linker_flags}".encode())
        for name in ("go.mod", "go.sum"):
            digest.update((MODULES / tool_set.module / name).read_bytes())
    return digest.hexdigest()[:16]


def require(name: str) -> Path:
    """The path of a built tool; raises ToolError with the fix when there is none."""
    path = folder() / name
    if not path.exists():
        source = "K8S_BIN" if os.environ.get("K8S_BIN") else "`make tools`"
        raise ToolError(f"no {name} in {path.parent}: {source} must provide it")
    return path


def missing(tool_sets: Sequence[ToolSet] = TOOL_SETS) -> list[str]:
    """Names of the binaries that are not there yet."""
    return [
        name for tools in tool_sets for name in tools.packages if not (folder() / name).exists()
    ]


def build(tool_sets: Sequence[ToolSet] = TOOL_SETS) -> None:
    """Build what is missing; two runs at once build once."""
    if not missing(tool_sets):
        return
    if os.environ.get("K8S_BIN"):
        raise ToolError(f"K8S_BIN={folder()} lacks {', '.join(missing(tool_sets))}")
    if shutil.which("go") is None:
        raise ToolError("building the test tools needs `go` on PATH (or set K8S_BIN=folder)")
    with _lock(folder()):
        for tool_set in tool_sets:
            if missing([tool_set]):
                _build_set(tool_set)


def _build_set(tool_set: ToolSet) -> None:
    names = ", ".join(tool_set.packages)
    print(f"building {names} (minutes when cold) ...", flush=True)
    began = time.monotonic()
    target = folder()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target) as scratch:
        for name, package in tool_set.packages.items():
            _go_build(tool_set, package, Path(scratch) / name)
        for name in tool_set.packages:
            os.replace(Path(scratch) / name, target / name)
    print(f"built {names} in {time.monotonic() - began:.0f} s", flush=True)


def _go_build(tool_set: ToolSet, package: str, output: Path) -> None:
    flags = ["-trimpath", "-mod=readonly", "-ldflags", tool_set.linker_flags]
    # A user's GOFLAGS must not change what the pins say; buildvcs would want a clean git tree.
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    result = subprocess.run(
        ["go", "build", *flags, "-o", str(output), package],
        cwd=MODULES / tool_set.module,
        env=environment,
        check=False,
    )
    if result.returncode != 0:
        raise ToolError(f"`go build {package}` failed; its output is above")


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another run is building the tools; waiting for it ...", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    try:
        build()
    except ToolError as error:
        print(f"tools: {error}", file=sys.stderr)
        return 1
    print(f"tools: {folder()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
