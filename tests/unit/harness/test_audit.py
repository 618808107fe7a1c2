"""The audit log as calls."""

import json
from pathlib import Path

from harness.api import Object
from harness.audit import AuditLog


def entry(user: str, verb: str, code: int, **target: str) -> str:
    line: Object = {
        "user": {"username": user},
        "verb": verb,
        "requestURI": "/healthz?x=1",
        "responseStatus": {"code": code},
    }
    return json.dumps(line | ({"objectRef": target} if target else {})) + "\n"


def test_calls_are_counted_by_verb_resource_and_code(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    pod = {"resource": "pods", "namespace": "a", "name": "x"}
    log.write_text(
        entry("system:serviceaccount:a:operator", "get", 200, **pod)
        + entry("system:serviceaccount:a:operator", "patch", 403, **pod, subresource="status")
        + entry("other", "get", 200, **pod)
        + entry("operator", "get", 200)
    )
    audit = AuditLog(log)
    assert audit.count(user=":operator") == {
        ("get", "pods", 200): 1,
        ("patch", "pods/status", 403): 1,
    }
    assert [call.verb for call in audit.denied(user=":operator")] == ["patch"]
    assert [call.resource for call in audit.calls(user="operator", namespace="")][-1] == "/healthz"


def test_a_mark_hides_what_was_before_and_a_half_line_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    assert AuditLog(log).mark().calls() == []
    log.write_text(entry("a", "get", 200))
    marked = AuditLog(log).mark()
    with log.open("a") as more:
        more.write(entry("a", "list", 200) + entry("a", "watch", 200)[:20])
    assert [call.verb for call in marked.calls()] == ["list"]
