"""Requests to replicas, as the gateway chooses: `mux_core.routes.least_loaded`."""

from collections import Counter
from collections.abc import Mapping

from mux_core.placement import Placement
from mux_core.routes import Endpoint, least_loaded, planned_weight
from mux_core.units import ModelName, UnitId


class Router:
    """The endpoints of every LLM and the requests each replica has not finished."""

    def __init__(self, endpoints: Mapping[ModelName, tuple[Endpoint, ...]]) -> None:
        self.endpoints = dict(endpoints)
        self._outstanding: Counter[tuple[str, ModelName]] = Counter()

    def take(self, model: ModelName) -> UnitId | None:
        """The unit that serves the next request of `model`, which counts as its from now on."""
        found = least_loaded(self.endpoints.get(model, ()),
                             lambda endpoint: self._outstanding[endpoint.unit, model])  # fmt: skip
        if found is None:
            return None
        self._outstanding[found.unit, model] += 1
        return UnitId(found.unit)

    def done(self, unit: UnitId, model: ModelName) -> None:
        self._outstanding[unit, model] -= 1


def endpoints(placement: Placement) -> dict[ModelName, tuple[Endpoint, ...]]:
    """One endpoint per member, weighted as the gateway weighs it."""
    found: dict[ModelName, tuple[Endpoint, ...]] = {}
    for unit, member in placement.members():
        weight = planned_weight(member.rate, member.concurrency)
        endpoint = Endpoint(unit=unit.id, host="", port=0, weight=weight)
        found[member.model] = (*found.get(member.model, ()), endpoint)
    return found
