"""What changes while `muxserve up` runs: sharing, priority, SLO, names; and what must not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mux_cli.demo_files import llm_manifest
from mux_cli.tiny_models import TinyModel, write
from up_server import UpServer, add_model, fetch, muxserve_up, wait_until

pytestmark = pytest.mark.engine
MIB = 2**20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return write(TinyModel(family="llama", layers=1, hidden=64, heads=2, kv_heads=1, head_dim=32,
                           intermediate=64), folder)  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpServer]:
    with muxserve_up(tmp_path_factory.mktemp("up"), {"one": tiny, "two": tiny}) as up:
        yield up


def kv(server: UpServer, model: str) -> dict[str, int]:
    """The model's KV account by kind, in bytes."""
    (unit,) = server.status()["units"]
    found = {}
    for family in text_string_to_metric_families(fetch(unit["metrics"])[1]):
        for sample in family.samples:
            if sample.name == "muxserve_model_kv_bytes" and sample.labels["model"] == model:
                found[sample.labels["kind"]] = int(sample.value)
    return found


def hosts(server: UpServer) -> set[int]:
    return {process.pid for process in server.role("mux_runtime.engines")}


def rewrite(server: UpServer, name: str, tiny: Path, *more: str) -> None:
    text = llm_manifest(name, tiny) + "".join(f"  {line}\n" for line in more)
    (server.manifests / f"{name}.yaml").write_text(text)


def last_line(server: UpServer, model: str) -> str:
    """What was told of the model last."""
    return next((x for x in reversed(server.lines) if f"] {model}: " in x), "")


def test_kv_priority_and_slo_follow_the_file_without_a_new_process(
    server: UpServer, tiny: Path
) -> None:
    before = hosts(server)
    rewrite(server, "one", tiny, "priority: 10", "slo: {ttft: 500ms, tpot: 100ms}",
            "sharing: {kvCache: {request: 64Mi, limit: 128Mi}}")  # fmt: skip
    wait_until(lambda: (kv(server, "one")["floor"], kv(server, "one")["limit"])
               == (64 * MIB, 128 * MIB))  # fmt: skip
    assert kv(server, "one")["quota"] <= 128 * MIB
    wait_until(lambda: server.model("one")["conditions"]["SLOMet"]["reason"] == "NotMeasured")
    assert hosts(server) == before
    assert server.served() == {"one", "two"}

    rewrite(server, "one", tiny, "sharing: {kvCache: {request: 900Mi}}")
    wait_until(lambda: server.said("sharing.kvCache.request: 900.0 MiB does not fit"))
    assert server.served() == {"one", "two"}
    assert ", but" not in last_line(server, "two"), "it has what it had"

    rewrite(server, "one", tiny)
    wait_until(lambda: kv(server, "one")["limit"] > 128 * MIB)
    wait_until(lambda: ", but" not in last_line(server, "one"))
    assert hosts(server) == before


def test_an_unread_source_makes_no_other_model_look_unready(server: UpServer) -> None:
    lines = len(server.lines)
    far = llm_manifest("far", Path("/nowhere")).replace("file:///nowhere", "hf://org/name")
    (server.manifests / "far.yaml").write_text(far)
    wait_until(lambda: server.said("far: UnsupportedSource"))
    assert server.served() == {"one", "two"}
    (server.manifests / "far.yaml").unlink()
    wait_until(lambda: server.said("LLMDeployment/far: deleted"))
    wait_until(lambda: server.model("far") == {})
    assert [x for x in server.lines[lines:] if "one:" in x or "two:" in x] == []


def test_a_name_in_two_files_is_told_with_both_places_and_changes_nothing(
    server: UpServer, tiny: Path
) -> None:
    copy = server.manifests / "zz-copy.yaml"
    copy.write_text(llm_manifest("two", tiny))
    wait_until(lambda: server.said("LLMDeployment/two: given twice, first at"))
    assert server.served() == {"one", "two"}
    copy.unlink()
    add_model(server.manifests, "three", tiny)
    wait_until(lambda: server.served() == {"one", "two", "three"})
    (server.manifests / "three.yaml").unlink()
    wait_until(lambda: server.served() == {"one", "two"})


def test_a_served_name_may_change_while_it_serves(server: UpServer, tiny: Path) -> None:
    before = hosts(server)
    text = llm_manifest("two", tiny).replace("  model:\n", "  model:\n    servedName: other\n")
    (server.manifests / "two.yaml").write_text(text)
    wait_until(lambda: server.served() == {"one", "other"})
    body = {"model": "other", "prompt": [5, 6], "max_tokens": 2}
    assert fetch(f"{server.url}/v1/completions", body)[0] == 200
    assert fetch(f"{server.url}/v1/completions", {**body, "model": "two"})[0] == 404
    rewrite(server, "two", tiny)
    wait_until(lambda: server.served() == {"one", "two"})
    assert hosts(server) == before


def test_no_body_is_a_failure_of_the_server(server: UpServer) -> None:
    """Whatever bytes come: an answer that names what is wrong, and the next request is served."""
    deep: object = "x"
    for _ in range(600):
        deep = [deep]
    status, text = fetch(f"{server.url}/v1/completions", {"model": "one", "prompt": deep})
    assert status == 400, text
    body = {"model": "one", "prompt": [5, 6], "max_tokens": 2}
    assert fetch(f"{server.url}/v1/completions", body)[0] == 200
