"""What `muxserve up` tells a person: one line per change, on standard error.

Standard output holds one line only, `ready URL`, for scripts that wait for it.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TextIO

from mux_core.reasons import ConditionType
from mux_core.snapshot import Carrier, LlmObject
from mux_core.specs import PoolKey
from mux_core.status import Condition, Figures, LlmStatus, PoolStatus
from mux_core.units import ModelName
from mux_operator.status_documents import figures_document

PASSING_S: Final = 0.3
"""A state that lasts shorter is not told."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """Prints a model's line when what it says changed; `clock` is monotonic."""

    clock: Callable[[], float]
    err: TextIO = field(default_factory=lambda: sys.stderr)
    out: TextIO = field(default_factory=lambda: sys.stdout)
    _started: float = field(init=False)
    _last: dict[str, str] = field(default_factory=dict)
    _pending: dict[str, tuple[float, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = self.clock()

    def line(self, text: str) -> None:
        """One line with the seconds since the start."""
        # A reader that went away (`| head`) must not end a server.
        with contextlib.suppress(BrokenPipeError):
            print(f"[{self.clock() - self._started:6.1f} s] {text}", file=self.err, flush=True)

    def lines(self, texts: Iterable[object]) -> None:
        for text in texts:
            self.line(str(text))

    def ready(self, url: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(f"ready {url}", file=self.out, flush=True)

    def told(self, name: ModelName, before: LlmStatus | None, after: LlmStatus) -> None:
        """Notes a model's status; `flush` prints it when it is another than the last printed."""
        ready = after.condition(ConditionType.READY)
        if ready is None:
            return
        self._pending[name] = (self.clock(), describe(name, after, ready))
        if ready.holds or ready.permanent:
            self._print(name)

    def flush(self) -> None:
        """Prints what lasted a moment; a state that passed at once is nobody's news."""
        for name, (since, _) in list(self._pending.items()):
            if self.clock() - since >= PASSING_S:
                self._print(name)

    def _print(self, name: str) -> None:
        _, text = self._pending.pop(name)
        if self._last.get(name) != text:
            self._last[name] = text
            self.line(text)

    def told_pool(self, key: PoolKey, before: PoolStatus | None, after: PoolStatus) -> None:
        """A pool's condition that fails."""
        failing = next((c for c in after.conditions if c.type == ConditionType.READY
                        and not c.holds), None)  # fmt: skip
        told = failing is not None and failing.message
        text = f"pool {key.name}: {failing.reason}: {failing.message}" if failing and told else ""
        if text and self._last.get(f"pool/{key}") != text:
            self.line(text)
        self._last[f"pool/{key}"] = text

    def forget(self, name: str) -> None:
        """A model that is gone; it may come back and is then told anew."""
        self._last.pop(name, None)
        self._pending.pop(name, None)


def describe(name: str, status: LlmStatus, ready: Condition) -> str:
    """`llama-tiny: Serving in default-r1-u0`, or the reason why not yet."""
    if ready.holds:
        placed = status.condition(ConditionType.PLACED)
        but = f", but {placed.message}" if placed is not None and placed.message else ""
        return f"{name}: serving as {status.served_name!r} in {status.unit or 'no unit'}{but}"
    permanent = " (permanent)" if ready.permanent else ""
    message = f": {ready.message}" if ready.message else ""
    return f"{name}: {ready.reason}{permanent}{message}"


def status_document(
    url: str, metrics: str, llms: Sequence[LlmObject], units: Sequence[tuple[Carrier, int]]
) -> dict[str, Any]:
    """What `muxserve status` reads. `units` come with the pid of their supervisor."""
    return {
        "url": url,
        "metrics": metrics,
        "pid": os.getpid(),
        "models": [_model(llm) for llm in llms],
        "units": [_unit(carrier, pid) for carrier, pid in units if carrier.address is not None],
    }


def _unit(carrier: Carrier, pid: int) -> dict[str, Any]:
    assert carrier.address is not None
    at = carrier.address
    return {"unit": carrier.unit, "incarnation": carrier.incarnation, "pid": pid,
            "state": carrier.state, "url": f"http://{at.host}:{at.http}",
            "metrics": f"http://{at.host}:{at.metrics}/metrics",
            "control": f"{at.host}:{at.control}"}  # fmt: skip


def _model(llm: LlmObject) -> dict[str, Any]:
    ready = llm.status.condition(ConditionType.READY)
    return {
        "name": llm.name,
        "served_name": llm.status.served_name,
        "state": llm.status.state,
        "unit": llm.status.unit,
        "ready": ready is not None and ready.holds,
        "reason": ready.reason if ready is not None else "",
        "message": ready.message if ready is not None else "",
        "demand": llm.status.demand.rate if llm.status.demand is not None else None,
        "predicted": figures_document(llm.status.predicted or Figures()),
        "observed": figures_document(llm.status.observed or Figures()),
        "placements": [asdict(p) for p in llm.status.placements],
        "conditions": {c.type: {"status": c.status, "reason": c.reason, "message": c.message}
                       for c in llm.status.conditions},
    }  # fmt: skip
