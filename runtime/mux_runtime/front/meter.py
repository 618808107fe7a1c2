"""The measurements of one request, from arrival to end."""

from collections.abc import Callable

from mux_runtime.front.metrics import Finished, FrontMetrics
from mux_runtime.generation import ServedModel
from mux_runtime.openai.series import SloTargets

Clock = Callable[[], float]


class Meter:
    """Counts one request once, however it ends. `first_hop`: it did not come by the gateway."""

    def __init__(self, metrics: FrontMetrics, model: ServedModel, *, clock: Clock,
                 arrival: float, first_hop: bool) -> None:  # fmt: skip
        self._metrics = metrics
        self._model = model
        self._clock = clock
        self._arrival = arrival
        self._first_hop = first_hop
        self._first: float | None = None
        self._last = arrival
        self._ended = False
        self.tokens = 0

    @property
    def ttft_s(self) -> float | None:
        return None if self._first is None else self._first - self._arrival

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first."""
        if self._first is None or self.tokens < 2:
            return None
        return (self._last - self._first) / (self.tokens - 1)

    def step(self, tokens: int, *, prompt_tokens: int) -> None:
        """`tokens` new tokens arrived now."""
        now, before = self._clock(), self._last
        if not tokens:
            return
        self._last = now
        self.tokens += tokens
        if self._first is not None:
            self._metrics.tokens(self._model, tokens, since_last_s=now - before)
            return
        self._first = now
        self._metrics.first_token(self._model, now - self._arrival, prompt_tokens=prompt_tokens)
        self._metrics.tokens(self._model, tokens, since_last_s=None)
        if self._first_hop:
            model = self._model
            self._metrics.first_hop.first_token(model.model, model.served_name,
                                                now - self._arrival)  # fmt: skip

    def end(self, reason: Finished) -> None:
        """Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        e2e = self._clock() - self._arrival
        self._metrics.ended(self._model, reason, e2e_s=e2e, tpot_s=self.tpot_s)
        if self._first_hop and reason is not Finished.ABORT:
            self._judge(failed=reason is Finished.ERROR)

    def _judge(self, *, failed: bool) -> None:
        model = self._model
        targets = SloTargets(ttft_s=model.slo_ttft_s, tpot_s=model.slo_tpot_s)
        self._metrics.first_hop.ended(model.model, model.served_name, targets,
                                      ttft_s=self.ttft_s, tpot_s=self.tpot_s,
                                      failed=failed)  # fmt: skip
