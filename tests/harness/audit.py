"""What a user really asked the API server: the best assertion on a controller's behaviour."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One finished request. `resource` is `pods`, `pods/status`, `muxserve.io/gpupools` ..."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    agent: str


def write_policy(path: Path) -> None:
    """Everything, once, when it is answered; without bodies."""
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    }
    path.write_text(yaml.safe_dump(policy))


class AuditLog:
    """The calls since `mark()`, or since the API server first started."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset

    def mark(self) -> "AuditLog":
        """A view of what comes after now."""
        return AuditLog(self._path, self._path.stat().st_size if self._path.exists() else 0)

    def calls(
        self, *, user: str = "", verb: str = "", resource: str = "", namespace: str = ""
    ) -> list[Call]:
        """Calls that match every given word; a user matches as a suffix (`:operator`)."""
        return [
            call
            for call in self._read()
            if call.user.endswith(user)
            and verb in ("", call.verb)
            and resource in ("", call.resource)
            and namespace in ("", call.namespace)
        ]

    def count(self, *, user: str = "", namespace: str = "") -> Counter[tuple[str, str, int]]:
        """How often each (verb, resource, code) was called."""
        calls = self.calls(user=user, namespace=namespace)
        return Counter((call.verb, call.resource, call.code) for call in calls)

    def denied(self, *, user: str) -> list[Call]:
        """What RBAC refused: an RBAC that fits refuses nothing."""
        return [call for call in self.calls(user=user) if call.code == 403]

    def _read(self) -> Iterator[Call]:
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                # The last line may be half written.
                if line.endswith(b"\n"):
                    yield _call(line)


def _call(line: bytes) -> Call:
    entry = json.loads(line)
    target = entry.get("objectRef") or {}
    parts = (target.get("apiGroup"), target.get("resource"), target.get("subresource"))
    return Call(
        user=entry["user"].get("username", ""),
        verb=entry["verb"],
        resource="/".join(part for part in parts if part) or entry["requestURI"].split("?")[0],
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=entry.get("responseStatus", {}).get("code", 0),
        agent=entry.get("userAgent", ""),
    )
