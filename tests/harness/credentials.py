"""Who may talk to the test API server: bearer tokens and their kubeconfig files."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.tools import ToolError


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user of the token file; the name is what RBAC and the audit log see."""

    name: str
    groups: tuple[str, ...] = ()

    @property
    def token(self) -> str:
        return f"{self.file_name}-token"

    @property
    def file_name(self) -> str:
        return self.name.replace(":", "-")


ADMIN = User(name="admin", groups=("system:masters",))
CONTROLLER_MANAGER = User(name="system:kube-controller-manager")
SCHEDULER = User(name="system:kube-scheduler")


def node_user(name: str) -> User:
    """What the Node authorizer takes for the kubelet of node `name`."""
    return User(name=f"system:node:{name}", groups=("system:nodes",))


def write_token_file(path: Path, users: tuple[User, ...]) -> None:
    lines = (f'{u.token},{u.name},{u.file_name}-uid,"{",".join(u.groups)}"' for u in users)
    path.write_text("\n".join(lines) + "\n")


def write_signing_key(path: Path) -> None:
    """The key that signs ServiceAccount tokens."""
    if shutil.which("openssl") is None:
        raise ToolError("the control plane's signing key needs `openssl` on PATH")
    line = ["openssl", "genrsa", "-out", str(path), "2048"]
    subprocess.run(line, check=True, capture_output=True)


def write_kubeconfig(path: Path, *, server: str, authority: Path, token: str) -> Path:
    """A kubeconfig with one cluster, one user, one context; appears whole or not at all."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test",
                "cluster": {"server": server, "certificate-authority": str(authority)},
            }
        ],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
        "current-context": "test",
    }
    draft = path.with_suffix(".draft")
    # JSON is YAML, and needs no quoting rules.
    draft.write_text(json.dumps(config, indent=1))
    os.replace(draft, path)
    return path
