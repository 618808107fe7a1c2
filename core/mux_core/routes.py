"""The route table: how the gateway learns which unit serves which model.

Written by the operator, delivered as a file and by gRPC; a gateway keeps serving from the last
table it got. Order: models by served name, endpoints by unit id.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Final

from mux_core.errors import SpecError

_LEAST_WEIGHT: Final = 1e-4
"""Of an endpoint whose plan expects nothing there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The internal port of a unit that serves the model now; `weight`: see `planned_weight`."""

    unit: str
    host: str
    port: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One served model. `serving` is false while no endpoint is ready; `reason` then says why.

    SLO targets (seconds) are what the gateway judges requests by; absent means best effort.
    """

    model: str
    served_name: str
    endpoints: tuple[Endpoint, ...] = ()
    reason: str = ""
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None

    @property
    def serving(self) -> bool:
        return bool(self.endpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """All routes of one namespace, with the gateway's limits per model."""

    namespace: str
    pool: str = ""
    generation: int = 0
    max_queued_per_model: int = 256
    hold_timeout_s: float = 120.0
    routes: tuple[Route, ...] = ()

    def route(self, served_name: str) -> Route | None:
        return next((route for route in self.routes if route.served_name == served_name), None)


def planned_weight(rate: float, concurrency: float) -> float:
    """Weight of an endpoint whose plan sends it `rate` requests/s and expects `concurrency` of them
    to decode there at a time: by the rate alone, who is faster is always the least loaded, gets
    more than its plan, and is slow in the end. Where no concurrency is known, the rate.
    """
    return max(concurrency or rate, _LEAST_WEIGHT)


def least_loaded(
    endpoints: Iterable[Endpoint], outstanding: Callable[[Endpoint], int]
) -> Endpoint | None:
    """Who serves next: least outstanding requests for its weight, with this one; larger; unit id.

    `outstanding`: of the model asked for alone. Replicas differ in what they can serve, and a unit
    is busy with others as well; the plan took both into account when it set the weights.
    """
    return min(endpoints, key=lambda e: ((outstanding(e) + 1) / e.weight, -e.weight, e.unit),
               default=None)  # fmt: skip


def to_json(table: RouteTable) -> str:
    """The document; the same table gives the same bytes."""
    return json.dumps(asdict(table), sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> RouteTable:
    """Reads the document. Raises SpecError when it is not one."""
    try:
        document = json.loads(text)
        routes = tuple(
            Route(**{**item, "endpoints": tuple(Endpoint(**e) for e in item.get("endpoints", ()))})
            for item in document.get("routes", ())
        )
        return RouteTable(**{**document, "routes": routes})
    except (ValueError, TypeError, AttributeError) as error:
        raise SpecError(f"route table: {error}") from error
