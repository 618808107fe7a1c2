"""A pod's status, as the API wants it, from what its containers say. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.api import Object
from harness.kubelet.container import Container


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A pod at one moment."""

    phase: str
    address: str
    node_address: str
    started_at: str
    generation: int
    is_prepared: bool
    is_stopping: bool
    init: Sequence[Container]
    sidecars: Sequence[Container]
    main: Sequence[Container]


def pod_status(view: PodView, previous: Sequence[Object], moment: str) -> Object:
    """The complete status; a condition that did not change keeps its transition time."""
    lasting = [*view.sidecars, *view.main]
    initialized = all(c.exit_code == 0 for c in view.init) and all(
        c.up.is_set() for c in view.sidecars
    )
    all_ready = all(c.state.is_ready for c in lasting)
    ready = view.phase == "Running" and not view.is_stopping and all_ready
    facts = {
        "PodReadyToStartContainers": view.is_prepared,
        "Initialized": initialized,
        "ContainersReady": ready,
        "Ready": ready,
        "PodScheduled": True,
    }
    status: Object = {
        "phase": view.phase,
        "observedGeneration": view.generation,
        "startTime": view.started_at,
        "hostIP": view.node_address,
        "hostIPs": [{"ip": view.node_address}],
        "podIP": view.address,
        "podIPs": [{"ip": view.address}],
        "conditions": [_condition(name, fact, previous, moment) for name, fact in facts.items()],
        "containerStatuses": [_container(c) for c in view.main],
    }
    first = [*view.init, *view.sidecars]
    if first:
        status["initContainerStatuses"] = [_container(c) for c in first]
    return status


def _condition(name: str, fact: bool, previous: Sequence[Object], moment: str) -> Object:
    text = "True" if fact else "False"
    for condition in previous:
        if condition["type"] == name and condition["status"] == text:
            return condition
    return {"type": name, "status": text, "lastTransitionTime": moment}


def _container(container: Container) -> Object:
    state = container.state
    return {
        "name": container.name,
        "image": container.spec.get("image", ""),
        "imageID": "",
        "ready": state.is_ready or container.exit_code == 0,
        "started": state.is_started,
        "restartCount": state.restarts,
        "state": state.state,
        "lastState": state.last_state,
    }
