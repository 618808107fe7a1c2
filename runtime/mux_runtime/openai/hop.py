"""What a unit tells the gateway about a request, beside the answer itself.

On its internal port a unit adds two headers to a whole answer, and one comment event before the
last event of a stream. The gateway removes them; clients never see them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

TTFT_HEADER: Final = "X-MuxServe-TTFT-Seconds"
TOKENS_HEADER: Final = "X-MuxServe-Completion-Tokens"
_COMMENT: Final = b": muxserve tokens="


def headers_of(*, ttft_s: float | None, tokens: int) -> dict[str, str]:
    """Headers of a whole answer."""
    headers = {TOKENS_HEADER: str(tokens)}
    if ttft_s is not None:
        headers[TTFT_HEADER] = f"{ttft_s:.6f}"
    return headers


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeReport:
    """The headers, read back; None where the unit said nothing."""

    ttft_s: float | None
    tokens: int | None


def whole_report(headers: Mapping[str, str]) -> WholeReport:
    try:
        ttft, tokens = headers.get(TTFT_HEADER), headers.get(TOKENS_HEADER)
        return WholeReport(ttft_s=None if ttft is None else float(ttft),
                           tokens=None if tokens is None else int(tokens))  # fmt: skip
    except ValueError:
        return WholeReport(ttft_s=None, tokens=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventReport:
    """The comment event at the end of a stream."""

    tokens: int

    def encoded(self) -> bytes:
        return _COMMENT + str(self.tokens).encode() + b"\n\n"


def event_report(event: bytes) -> EventReport | None:
    """The report if `event` is one."""
    if not event.startswith(_COMMENT):
        return None
    digits = event[len(_COMMENT) :].strip()
    return EventReport(tokens=int(digits)) if digits.isdigit() else None
