"""Whether all models serve, some never will, or one has to wait; pure.

On one machine nobody adds a GPU or a pool while the server waits: some reasons that a cluster
waits out are final here until a file changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mux_core.reasons import ConditionType, Reason
from mux_core.snapshot import LlmObject
from mux_core.status import Condition

FINAL_HERE: Final = frozenset({
    Reason.POOL_NOT_FOUND, Reason.NO_CAPACITY, Reason.DOES_NOT_FIT, Reason.TENANT_CONFLICT,
    Reason.NAME_CONFLICT, Reason.NOT_FOUND, Reason.ACCESS_DENIED, Reason.UNSUPPORTED_SOURCE,
    Reason.UNSUPPORTED_MODEL, Reason.UNSUPPORTED_VERSION, Reason.CORRUPT_CHECKPOINT,
    Reason.TOKENIZER_MISSING, Reason.INSPECTION_FAILED, Reason.UNIT_REFUSED_SPEC,
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Models by how they are; `failed` with the condition that says why."""

    serving: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    failed: tuple[tuple[str, Condition], ...] = ()

    @property
    def settled(self) -> bool:
        """Waiting longer changes nothing."""
        return not self.waiting


def judge(llms: Sequence[LlmObject]) -> Verdict:
    """Sorts models by their last status; one of an older generation has to wait.

    So has one whose file broke since it was read: a half-written edit must not end the server.
    """
    serving, waiting, failed = [], [], []
    for llm in llms:
        ready = llm.status.condition(ConditionType.READY)
        if ready is None or llm.status.observed_generation != llm.generation:
            waiting.append(llm.name)
        elif ready.holds:
            serving.append(llm.status.served_name)
        elif ready.reason == Reason.INVALID_SPEC:
            waiting.append(llm.name)
        elif ready.permanent or ready.reason in FINAL_HERE:
            failed.append((llm.name, ready))
        else:
            waiting.append(llm.name)
    return Verdict(serving=tuple(serving), waiting=tuple(waiting), failed=tuple(failed))
