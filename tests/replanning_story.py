"""One story told on a cluster and on one machine: the load on one of three models rises tenfold.

Every model declares one request a second. A slot carries that, and by prediction not ten times as
much of `BUSY`, which may have a second replica; one slot is free.
"""

from functools import cache
from pathlib import Path
from typing import Any, Final

from load import Ask, Fate, random_asks, steady_asks
from mux_cli.tiny_models import DEMO
from reference_tokens import greedy_tokens

MODELS: Final = sorted(DEMO)
BUSY: Final = "tiny-qwen2"
SLOTS: Final = [{"node": "node-0", "count": 2, "memory": "256Mi"}]
LOAD_S: Final = 30.0


def llm_spec(model: str) -> dict[str, Any]:
    """Declared rates; what a request is expected to cost makes ten a second too many."""
    spec: dict[str, Any] = {"workload": {"requestRate": "1", "isl": 100, "osl": 700}}
    if model == BUSY:
        spec["scaling"] = {"minReplicas": 1, "maxReplicas": 2}
    return spec


def asks() -> list[Ask]:
    """Ten a second of one model, and streams of the others beside it."""
    others = [model for model in MODELS if model != BUSY]
    quiet = random_asks(11, others, 10, within_s=LOAD_S * 0.8, cancelled=0)
    return [*steady_asks(BUSY, 10.0, LOAD_S), *quiet]


def check(fates: list[Fate], checkpoints: dict[str, Path]) -> None:
    """No stream broke, and every token is the one that transformers gives."""
    assert [fate for fate in fates if fate.broken] == []
    for fate in fates:
        wanted = _wanted(checkpoints[fate.ask.model], fate.ask.prompt, fate.ask.max_tokens)
        assert fate.tokens == wanted, fate


_wanted = cache(greedy_tokens)


def check_plans(plans: list[dict[str, Any]]) -> None:
    """The first may know some of the models only: their checkpoints are read one by one."""
    for plan in plans:
        check_plan(plan)
    predicted = plans[-1]["spec"]["predicted"]["proposed"]
    assert {found["model"] for found in predicted["models"]} == set(MODELS)


def check_plan(plan: dict[str, Any]) -> None:
    """A plan as it is shown: predicted, explained, and nothing carried out that disturbs."""
    spec, status = plan["spec"], plan["status"]
    assert spec["strategy"] == "default"
    assert {"gpus", "throughput", "worstRatio", "models"} <= set(spec["predicted"]["proposed"])
    assert len(spec["alternatives"]) <= 8
    assert all(step["reason"] and step["kind"] for step in spec["steps"])
    states = {state["id"]: state for state in status["stepStates"]}
    for step in spec["steps"]:
        state = states[step["id"]]
        if step["disruptive"]:
            assert (state["state"], state["reason"]) == ("Pending", "AwaitingApproval")
    waits = any(step["disruptive"] for step in spec["steps"])
    assert status["phase"] in (("Pending", "Superseded") if waits else ("Completed",))
