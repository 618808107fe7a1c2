"""What an inspect run printed, as a status keeps it; pure."""

from mux_core.checkpoint import Unresolved, from_json
from mux_core.errors import SpecError
from mux_core.reasons import Reason
from mux_core.status import Resolved


def resolved_from(text: str, errors: str, *, source: str) -> Resolved:
    """The result of a run that printed `text`; one without a result says its last error line."""
    try:
        found = from_json(text)
    except SpecError as error:
        last = errors.strip().splitlines()[-1:] or [str(error)]
        return Resolved(source=source, error_reason=Reason.INSPECTION_FAILED, message=last[0])
    if isinstance(found, Unresolved):
        return Resolved(source=source, error_reason=found.reason, message=found.message)
    return Resolved(source=source, geometry=found.geometry, weight_bytes=found.weight_bytes)
