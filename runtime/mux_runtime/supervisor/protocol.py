"""JSON lines between supervisor and brain; the brain asks, the supervisor tells what happened.

    brain:       {"op": "start", "name", "argv", "env"}     {"op": "kill", "name"}
    supervisor:  {"event": "started", "name", "pid"}
                 {"event": "exited", "name", "pid", "code", "tail"}    (also for a failed start)

A name is used again only after its `exited`. When the brain's connection ends, all it started are
killed.
"""

import json
from typing import Any

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError(f"not an object: {line[:80]!r}")
    return message
