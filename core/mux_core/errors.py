"""The error tree: whose fault it was, and whether trying again helps.

    MuxError
     ├── SpecError       what the user wrote is wrong; do not retry until it changes
     │    ├── UnsupportedModel   the checkpoint asks for something no engine here has
     │    └── RequestRefused     this request can never be served as it is
     ├── CapacityError   it does not fit now; may fit later, carries a typed reason
     ├── PeerError       API server, unit or engine failed us; retry after `retry_after_s`
     └── InvariantError  our own bug; never caught to go on as if nothing happened
          └── BadGrant        a host was granted what it may not be

Every message names subject, value, limit and fix, in that order where they exist.
"""


class MuxError(Exception):
    """Base of every error this project raises on purpose."""


class SpecError(MuxError):
    """The user's input is wrong; retrying the same input cannot help."""


class UnsupportedModel(SpecError):
    """A checkpoint names an architecture or a field value no engine here supports."""


class RequestRefused(SpecError):
    """This request can never be served as it is (too long, unknown value)."""


class CapacityError(MuxError):
    """It does not fit at present; `reason` is a value of `mux_core.reasons`."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class PeerError(MuxError):
    """Another process failed; the same call may succeed after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InvariantError(MuxError):
    """A rule of ours is broken; a bug, counted and reported, never hidden."""


class BadGrant(InvariantError):
    """The scheduler granted what it may not."""
