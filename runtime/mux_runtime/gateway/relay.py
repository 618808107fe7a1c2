"""Passes a unit's event stream on, event by event, and notices when it is cut.

Only whole events are passed on, so a stream that breaks off in the middle of one can still be
ended with a readable error event.
"""

from collections.abc import Iterator
from typing import Final

from mux_runtime.openai.hop import event_report
from mux_runtime.openai.responses import DONE

_END: Final = b"\n\n"
_ERROR: Final = b'data: {"error":'


class EventSplitter:
    """Whole events out of the bytes of a stream; removes the unit's report, keeps its figure."""

    def __init__(self) -> None:
        self._rest = b""
        self.ended = False
        self.failed = False
        self.tokens: int | None = None

    def push(self, data: bytes) -> bytes:
        """The events that are complete now, to be passed on together."""
        whole, separator, self._rest = (self._rest + data).rpartition(_END)
        return b"".join(self._kept(whole + separator)) if separator else b""

    def _kept(self, events: bytes) -> Iterator[bytes]:
        for event in events[: -len(_END)].split(_END):
            report = event_report(event)
            if report is not None:
                self.tokens = report.tokens
                continue
            whole = event + _END
            self.failed = self.failed or event.startswith(_ERROR)
            self.ended = self.failed or self.ended or whole == DONE
            yield whole
