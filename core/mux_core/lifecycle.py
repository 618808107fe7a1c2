"""The lives of an engine host, a member and a request, one table each.

An engine host is started, says it is open (Ready) and from then on has at most one call under
way (Stepping). It ends because it was told to (Stopped) or in any other way (Failed); a failed
one starts again until its tries are spent. Nothing leads out of Stopped.

A member is one LLM in a unit. It serves when both its hosts were ready once; a host that dies and
comes back does not take it out of service, because its requests wait and then go on. A failed
member is taken away like any other and, on a new spec, added as a new one. Draining refuses new
requests and lets running ones finish.

A request waits in its member's queue, is computed by the prefill host, travels with its rows to
the decode host and leaves. At any moment it may be preempted or lose its host: then it waits
again, its emitted tokens standing. What is finished, failed or cancelled stays so.

A step the table does not have raises InvariantError and changes nothing.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar

from mux_core.errors import InvariantError


class HostState(StrEnum):
    STARTING = "Starting"
    READY = "Ready"
    STEPPING = "Stepping"
    STOPPED = "Stopped"
    FAILED = "Failed"


class HostEvent(StrEnum):
    OPENED = "opened"
    CALLED = "called"
    ANSWERED = "answered"
    DIED = "died"
    RESTARTED = "restarted"
    STOPPED = "stopped"


class MemberState(StrEnum):
    STARTING = "Starting"
    SERVING = "Serving"
    DRAINING = "Draining"
    STOPPED = "Stopped"
    FAILED = "Failed"


class MemberEvent(StrEnum):
    HOSTS_READY = "hosts ready"
    GAVE_UP = "gave up"
    DRAIN = "drain"
    DRAINED = "drained"


class RequestState(StrEnum):
    QUEUED = "Queued"
    PREFILLING = "Prefilling"
    HANDED_OFF = "HandedOff"
    DECODING = "Decoding"
    FINISHED = "Finished"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class RequestEvent(StrEnum):
    ADMITTED = "admitted"
    HANDED_OFF = "handed off"
    ADOPTED = "adopted"
    SET_BACK = "set back"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)

HOST: Final[Mapping[tuple[HostState, HostEvent], HostState]] = {
    (HostState.STARTING, HostEvent.OPENED): HostState.READY,
    (HostState.READY, HostEvent.CALLED): HostState.STEPPING,
    (HostState.STEPPING, HostEvent.ANSWERED): HostState.READY,
    (HostState.STARTING, HostEvent.DIED): HostState.FAILED,
    (HostState.READY, HostEvent.DIED): HostState.FAILED,
    (HostState.STEPPING, HostEvent.DIED): HostState.FAILED,
    (HostState.FAILED, HostEvent.RESTARTED): HostState.STARTING,
    (HostState.STARTING, HostEvent.STOPPED): HostState.STOPPED,
    (HostState.READY, HostEvent.STOPPED): HostState.STOPPED,
    (HostState.STEPPING, HostEvent.STOPPED): HostState.STOPPED,
    (HostState.FAILED, HostEvent.STOPPED): HostState.STOPPED,
}

MEMBER: Final[Mapping[tuple[MemberState, MemberEvent], MemberState]] = {
    (MemberState.STARTING, MemberEvent.HOSTS_READY): MemberState.SERVING,
    (MemberState.STARTING, MemberEvent.GAVE_UP): MemberState.FAILED,
    (MemberState.STARTING, MemberEvent.DRAIN): MemberState.DRAINING,
    (MemberState.SERVING, MemberEvent.GAVE_UP): MemberState.FAILED,
    (MemberState.SERVING, MemberEvent.DRAIN): MemberState.DRAINING,
    (MemberState.DRAINING, MemberEvent.DRAINED): MemberState.STOPPED,
    (MemberState.DRAINING, MemberEvent.GAVE_UP): MemberState.STOPPED,
    (MemberState.FAILED, MemberEvent.DRAIN): MemberState.DRAINING,
}

REQUEST: Final[Mapping[tuple[RequestState, RequestEvent], RequestState]] = {
    (RequestState.QUEUED, RequestEvent.ADMITTED): RequestState.PREFILLING,
    (RequestState.PREFILLING, RequestEvent.HANDED_OFF): RequestState.HANDED_OFF,
    (RequestState.HANDED_OFF, RequestEvent.ADOPTED): RequestState.DECODING,
    (RequestState.PREFILLING, RequestEvent.SET_BACK): RequestState.QUEUED,
    (RequestState.HANDED_OFF, RequestEvent.SET_BACK): RequestState.QUEUED,
    (RequestState.DECODING, RequestEvent.SET_BACK): RequestState.QUEUED,
    (RequestState.PREFILLING, RequestEvent.FINISHED): RequestState.FINISHED,
    (RequestState.DECODING, RequestEvent.FINISHED): RequestState.FINISHED,
    **{(state, RequestEvent.FAILED): RequestState.FAILED
       for state in (RequestState.QUEUED, RequestState.PREFILLING, RequestState.HANDED_OFF,
                     RequestState.DECODING)},
    **{(state, RequestEvent.CANCELLED): RequestState.CANCELLED
       for state in (RequestState.QUEUED, RequestState.PREFILLING, RequestState.HANDED_OFF,
                     RequestState.DECODING)},
}  # fmt: skip


def advance(
    table: Mapping[tuple[State, Event], State], state: State, event: Event, *, role: str
) -> State:
    """The state after `event`. Raises InvariantError naming event, role and state."""
    try:
        return table[state, event]
    except KeyError:
        raise InvariantError(f"{role}: {event.value!r} is impossible in state {state}") from None
