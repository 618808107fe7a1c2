"""From `helm install` to tokens, on a real control plane with the process kubelet.

One installation serves all tests of this module: each leaves `tiny-llama` and `tiny-qwen2`
serving in one unit.
"""

import asyncio
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from harness.cluster import Cluster
from harness.waiting import eventually
from load import Fate, random_asks, run_load
from mux_cli.tiny_models import write_demo
from mux_core.decide import PLANS_KEPT
from mux_core.rates import TAU_S
from operator_builders import llm_manifest
from operator_cluster import Installed, apply_models, install_crds, installed
from reference_tokens import greedy_tokens

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(600)]

MODELS = ("tiny-llama", "tiny-qwen2")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_demo(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def stack(cluster: Cluster, checkpoints: dict[str, Path]) -> Iterator[Installed]:
    install_crds(cluster)
    folder = next(iter(checkpoints.values())).parent
    with installed(cluster, folder) as install:
        apply_models(install, *MODELS)
        install.wait_ready(*MODELS)
        yield install


@pytest.fixture(scope="module", autouse=True)
def first_plan(stack: Installed) -> dict[str, Any]:
    """The plan that started the unit, read before others push it out of those kept."""

    def completed() -> bool:
        return bool(
            stack.kubectl.get("placementplan", "default-r1")["status"]["phase"] == "Completed"
        )

    eventually(completed, "the first plan is completed", within=30)
    return stack.kubectl.get("placementplan", "default-r1")


def assert_reference(fates: list[Fate], checkpoints: dict[str, Path]) -> None:
    """No broken stream, and what a client saw is what transformers says."""
    for fate in fates:
        assert not fate.broken, fate
        wanted = greedy_tokens(checkpoints[fate.ask.model], fate.ask.prompt, fate.ask.max_tokens)
        assert fate.tokens == wanted[: len(fate.tokens)]


async def test_both_models_stream_the_tokens_of_transformers_from_one_unit(
    stack: Installed, checkpoints: dict[str, Path]
) -> None:
    fates = await run_load(stack.url, random_asks(1, MODELS, 12))
    assert_reference(fates, checkpoints)
    assert len(stack.unit_pods()) == 1
    assert stack.served() >= set(MODELS)


def test_kubectl_shows_what_serves(stack: Installed) -> None:
    header, *rows = stack.kubectl("get", "llm").splitlines()
    assert header.split() == ["NAME", "MODEL", "READY", "REASON", "STATE", "RATE", "UNIT", "AGE"]
    shown = {row.split()[0]: row.split()[1:5] for row in rows}
    for model in MODELS:
        assert shown[model] == [model, "True", "Ready", "Serving"]
    pool = stack.kubectl.get("gpupool", "default")["status"]
    assert (pool["gpus"], pool["freeGpus"], pool["unitCount"]) == (1, 0, 1)


def test_every_plan_is_written_down_with_its_steps(
    stack: Installed, first_plan: dict[str, Any]
) -> None:
    assert first_plan["spec"]["steps"][0]["kind"] == "CreateUnit"
    assert first_plan["status"]["phase"] == "Completed"
    active = stack.kubectl.get("gpupool", "default")["status"]["activePlan"]
    kept = [plan["metadata"]["name"] for plan in stack.kubectl.get("placementplans")["items"]]
    assert active in kept
    assert len(kept) <= PLANS_KEPT


def test_every_model_has_its_own_address(stack: Installed) -> None:
    ports = {stack.kubectl.get("service", f"llm-{model}")["spec"]["ports"][0]["targetPort"]
             for model in MODELS}  # fmt: skip
    assert len(ports) == len(MODELS)
    (pod,) = stack.unit_pods()
    for model in MODELS:
        assert pod["metadata"]["labels"][f"llm.muxserve.io/{model}"] == "serving"


async def test_a_third_model_joins_and_leaves_the_running_unit_under_load(
    stack: Installed, checkpoints: dict[str, Path]
) -> None:
    before = stack.unit_pods()[0]["metadata"]["uid"]
    load = asyncio.create_task(run_load(stack.url, random_asks(2, MODELS, 40, within_s=20.0)))
    await asyncio.to_thread(apply_models, stack, "tiny-qwen3")
    await asyncio.to_thread(stack.wait_ready, "tiny-qwen3")
    assert_reference(await run_load(stack.url, random_asks(3, ["tiny-qwen3"], 4)), checkpoints)
    await asyncio.to_thread(stack.kubectl, "delete", "llm", "tiny-qwen3")
    await asyncio.to_thread(
        eventually, lambda: "tiny-qwen3" not in stack.served(), "the model is gone"
    )
    assert_reference(await load, checkpoints)
    (pod,) = stack.unit_pods()
    assert pod["metadata"]["uid"] == before


async def test_killing_the_operator_touches_no_pod_and_no_request(
    stack: Installed, checkpoints: dict[str, Path]
) -> None:
    before = [pod["metadata"]["uid"] for pod in stack.unit_pods()]
    load = asyncio.create_task(run_load(stack.url, random_asks(4, MODELS, 20, within_s=8.0)))
    (operator,) = stack.operator_pods()
    await asyncio.to_thread(stack.kubectl, "delete", "pod", operator["metadata"]["name"],
                            "--grace-period=0", "--force")  # fmt: skip
    assert_reference(await load, checkpoints)
    await asyncio.to_thread(wait_operator, stack)
    # The new leader changes something, so it does lead.
    await asyncio.to_thread(apply_models, stack, "tiny-qwen3")
    await asyncio.to_thread(stack.wait_ready, "tiny-qwen3")
    await asyncio.to_thread(stack.kubectl, "delete", "llm", "tiny-qwen3")
    assert [pod["metadata"]["uid"] for pod in stack.unit_pods()] == before


async def test_an_api_server_away_for_half_a_minute_costs_no_request(
    stack: Installed, checkpoints: dict[str, Path]
) -> None:
    before = [pod["metadata"]["uid"] for pod in stack.unit_pods()]
    (operator,) = stack.operator_pods()
    restarts = operator["status"]["containerStatuses"][0]["restartCount"]
    api = next(p for p in stack.cluster.control_plane.parts if p.name == "kube-apiserver")
    url = stack.url
    load = asyncio.create_task(run_load(url, random_asks(5, MODELS, 40, within_s=30.0)))
    api.kill(signal.SIGKILL)
    await asyncio.sleep(30.0)
    api.start()
    await asyncio.to_thread(stack.cluster.control_plane.wait_ready)
    assert_reference(await load, checkpoints)
    await asyncio.to_thread(apply_models, stack, "tiny-qwen3")
    await asyncio.to_thread(stack.wait_ready, "tiny-qwen3")
    await asyncio.to_thread(stack.kubectl, "delete", "llm", "tiny-qwen3")
    assert [pod["metadata"]["uid"] for pod in stack.unit_pods()] == before
    (operator,) = stack.operator_pods()
    assert operator["status"]["containerStatuses"][0]["restartCount"] == restarts


def test_what_cannot_be_served_says_why_and_disturbs_nobody(stack: Installed) -> None:
    cases = {
        "absent": (llm_manifest("absent"), "NotFound"),
        "remote": (llm_manifest("remote", model={"uri": "hf://org/model"}), "UnsupportedSource"),
        "twin": (llm_manifest("twin", model={"uri": "pvc://models/tiny-qwen3",
                                             "servedName": MODELS[0]}), "NameConflict"),
        "lost": (llm_manifest("lost", model={"uri": "pvc://models/tiny-qwen3"},
                              poolRef={"name": "nowhere"}), "PoolNotFound"),
        "huge": (llm_manifest("huge", model={"uri": "pvc://models/tiny-qwen3"},
                              sharing={"kvCache": {"request": "100Gi"}}), "DoesNotFit"),
    }  # fmt: skip
    for manifest, _ in cases.values():
        stack.kubectl.apply(manifest)
    for name, (_, reason) in cases.items():
        eventually(lambda n=name, r=reason: _reason(stack, n) == r, f"{name} says {reason}",
                   within=40, every=0.5)  # fmt: skip
        assert stack.condition(name)["message"]
    assert all(stack.condition(model)["status"] == "True" for model in MODELS)
    stack.kubectl("delete", "llm", *cases)


async def test_the_operator_measures_what_is_offered(stack: Installed) -> None:
    """Beyond what the unit takes: arrivals count, not completions."""
    offered = Offered(url=stack.url, model=MODELS[0], rate=12.0)
    # The mean of a model that was idle before reaches 98 % after four time constants.
    settled_s = 4 * TAU_S
    asked = asyncio.gather(*(offered.one(n) for n in range(int(12 * (settled_s + 10)))))
    await asyncio.sleep(offered.began + settled_s - time.monotonic())
    # Both while requests still arrive: afterwards the rate falls, as it should.
    measured, sent = await asyncio.to_thread(_metric, stack, MODELS[0]), offered.measured()
    codes = await asked
    assert codes.count(200) < len(codes) / 2, "the offered rate is not twice the capacity"
    assert measured == pytest.approx(sent, rel=0.05)


@dataclass(slots=True, kw_only=True)
class Offered:
    """An open client: one request every 1/`rate` seconds, whatever becomes of the others."""

    url: str
    model: str
    rate: float
    began: float = field(default_factory=time.monotonic)
    sent: list[float] = field(default_factory=list)

    async def one(self, number: int) -> int:
        await asyncio.sleep(self.began + number / self.rate - time.monotonic())
        self.sent.append(time.monotonic())
        body = {"model": self.model, "prompt": [7, 8, 9], "max_tokens": 1024, "ignore_eos": True}
        # Nobody waits for an answer: what counts is that it was asked.
        timeout = aiohttp.ClientTimeout(total=5)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(f"{self.url}/v1/completions", json=body) as answer,
            ):
                return answer.status
        except TimeoutError:
            return 0

    def measured(self) -> float:
        """Requests per second as they really left."""
        return (len(self.sent) - 1) / (self.sent[-1] - self.sent[0])


def wait_operator(stack: Installed) -> None:
    def ready() -> bool:
        conditions = [c for pod in stack.operator_pods() for c in pod["status"]["conditions"]]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    eventually(ready, "the operator is ready", within=60)


def _reason(stack: Installed, model: str) -> str:
    return str(stack.condition(model).get("reason", ""))


def _metric(stack: Installed, model: str) -> float:
    import urllib.request

    address = stack.operator_pods()[0]["status"]["podIP"]
    with urllib.request.urlopen(f"http://{address}:8080/metrics", timeout=5) as answer:
        text = answer.read().decode()
    lines = (line for line in text.splitlines() if line.startswith("muxserve_model_request_rate{"))
    return next(float(line.split()[-1]) for line in lines if f'model="{model}"' in line)


def test_every_request_of_the_operator_is_allowed_by_its_role(stack: Installed) -> None:
    """An API server that just started refuses what it allows a moment later; no more than that."""
    user = f"system:serviceaccount:{stack.namespace}:mux-operator"
    audit = stack.cluster.audit
    allowed = {(c.verb, c.resource) for c in audit.calls(user=user) if c.code < 400}
    denied = {(c.verb, c.resource) for c in audit.denied(user=user)}
    assert allowed
    assert denied <= allowed


async def test_a_killed_engine_host_costs_no_token(
    stack: Installed, checkpoints: dict[str, Path]
) -> None:
    load = asyncio.create_task(run_load(stack.url, random_asks(6, MODELS, 24, within_s=6.0)))
    await asyncio.sleep(3.0)
    hosts = [p for p in psutil.process_iter(["cmdline"])
             if "mux_runtime.engines.torch" in (p.info["cmdline"] or ())]  # fmt: skip
    hosts[0].kill()
    assert_reference(await load, checkpoints)
    await asyncio.to_thread(stack.wait_ready, *MODELS)


async def test_the_other_model_streams_on_while_one_is_deleted(
    stack: Installed, checkpoints: dict[str, Path]
) -> None:
    load = asyncio.create_task(run_load(stack.url, random_asks(7, MODELS[:1], 20, within_s=8.0)))
    await asyncio.sleep(1.0)
    await asyncio.to_thread(stack.kubectl, "delete", "llm", MODELS[1])
    await asyncio.to_thread(
        eventually, lambda: MODELS[1] not in stack.served(), "the model is gone"
    )
    assert_reference(await load, checkpoints)
    await asyncio.to_thread(apply_models, stack, MODELS[1])
    await asyncio.to_thread(stack.wait_ready, *MODELS)


def test_deleting_the_last_model_removes_the_pod(stack: Installed) -> None:
    stack.kubectl("delete", "llm", *MODELS)
    eventually(lambda: not stack.unit_pods(), "no unit pod is left", within=60, every=0.3)
    assert not stack.served()
    apply_models(stack, *MODELS)
    stack.wait_ready(*MODELS)
    assert len(stack.unit_pods()) == 1
