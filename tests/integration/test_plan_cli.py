"""`muxserve plan` and `muxserve workload` as people and scripts use them."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

MUXSERVE = [sys.executable, "-m", "mux_cli.main"]


def muxserve(*words, code=0):
    found = subprocess.run([*MUXSERVE, *map(str, words)], capture_output=True, text=True)
    assert found.returncode == code, found.stderr
    return found


def plan(path, *words):
    return json.loads(muxserve("plan", "--workload", path, "-o", "json", *words).stdout)


@pytest.fixture
def hot(tmp_path):
    path = tmp_path / "hot.json"
    muxserve("workload", "--power-law", 2.1, "--scale", 0.5, "--out", path)
    return path


def write(tmp_path, models, **cluster):
    path = tmp_path / "w.yaml"
    shape = {"nodes": 1, "gpus_per_node": 8, "gpu": "a100-80gb"} | cluster
    path.write_text(yaml.safe_dump({"cluster": shape, "models": models}))
    return path


A = {"name": "a", "profile": "llama-7b", "rate": 2.0}


def check_contract(document, offered):
    fields = {"strategy", "score", "goodput", "worst_ratio", "gpus_used", "gpus_total", "bound",
              "seconds", "deadline_hit", "models", "units", "alternatives", "moves"}  # fmt: skip
    assert fields <= set(document)
    taken = set()
    for unit in document["units"]:
        assert not taken & {(unit["node"], gpu) for gpu in unit["gpus"]}
        taken |= {(unit["node"], gpu) for gpu in unit["gpus"]}
        for member in unit["members"]:
            assert member["gpus"] == unit["gpus"]
            assert member["tensor"] == len(unit["gpus"])
            assert {"rate", "prefill_percent", "decode_percent", "kv_bytes"} <= set(member)
        if not document["strategy"].startswith("muxserve-"):
            assert sum(member["decode_percent"] for member in unit["members"]) <= 100
    assert len(taken) == document["gpus_used"]
    assert sum(m["offered"] for m in document["models"].values()) == pytest.approx(offered)
    served = sum(min(m["served"], m["offered"]) for m in document["models"].values())
    assert served == pytest.approx(document["goodput"])


@pytest.mark.parametrize(
    ("strategy", "score", "gpus"),
    [("muxserve-released", 13.9161, 25), ("muxserve-fixed", 14.1146, 32),
     ("spatial-replicas", 14.0238, 26), ("spatial", None, 32), ("temporal", None, 25),
     ("default", 14.0238, None)],
)  # fmt: skip
def test_every_strategy_prints_the_contract(hot, strategy, score, gpus):
    document = plan(hot, "--strategy", strategy, "--no-bound")
    check_contract(document, 30.5117)
    assert document["strategy"] == strategy
    assert document["estimator"] == ("default" if strategy == "default" else "muxserve")
    assert score is None or document["score"] == pytest.approx(score, abs=1e-4)
    assert gpus is None or document["gpus_used"] == gpus


def test_models_keep_their_order_and_the_bound_is_below_the_plan(hot):
    document = plan(hot)
    assert list(document["models"]) == [f"llm-{i}" for i in range(19)]
    assert document["bound"]["gpus"] <= document["gpus_used"]
    assert document["bound"]["goodput"] >= document["goodput"] - 1e-6
    assert document["constraints"]["maxTensorParallelMembersPerUnit"] is None


def test_a_plan_from_its_own_placement_moves_nothing(hot, tmp_path):
    current = tmp_path / "plan.json"
    current.write_text(json.dumps(plan(hot, "--no-bound")))
    assert plan(hot, "--no-bound", "--current", current)["moves"] == []


def test_one_switch_alone_changes_the_replay(hot):
    released = plan(hot, "--strategy", "muxserve-released", "--no-bound")
    switched = plan(hot, "--strategy", "muxserve-released", "--no-bound",
                    "--switch", "stale_mesh_index=off")  # fmt: skip
    fixed = plan(hot, "--strategy", "muxserve-fixed", "--no-bound")
    assert released["score"] != switched["score"] == fixed["score"]


def test_fewer_gpus_and_the_frontier(hot):
    document = plan(hot, "--gpus", 10, "--frontier", "--no-bound")
    assert document["gpus_used"] <= document["gpus_total"] == 10
    ratios = [point["worst_ratio"] for point in document["frontier"]]
    assert max(ratios) > 0


def test_a_deadline_stops_the_search_and_says_so(tmp_path):
    path = tmp_path / "w.json"
    muxserve("workload", "--power-law", 0.9, "--out", path)
    document = plan(path, "--deadline", 0.001, "--no-bound")
    assert document["deadline_hit"]
    check_contract(document, 161.14918)


def test_tables_yaml_and_pictures(hot, tmp_path):
    table = muxserve("plan", "--workload", hot, "--no-bound", "--plot", tmp_path / "plots").stdout
    assert "GPUs" in table
    assert "llm-18" in table
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"placement.png", "service.png"}
    text = muxserve("plan", "--workload", hot, "--no-bound", "-o", "yaml").stdout
    assert yaml.safe_load(text)["strategy"] == "default"


def test_workloads_permute_and_compress(tmp_path):
    chat = json.loads(muxserve("workload", "--chatlmsys", 800).stdout)
    assert len(chat["models"]) == 16
    assert [m["spatial_gpus"] for m in chat["models"][:3]] == [1, 2, 1]
    plain = json.loads(muxserve("workload", "--power-law", 2.1).stdout)["models"]
    mixed = json.loads(muxserve("workload", "--power-law", 2.1, "--permute", 3).stdout)["models"]
    rates = [[m["rate"] for m in models] for models in (plain, mixed)]
    assert rates[0] != rates[1]
    assert sorted(rates[0]) == sorted(rates[1])


def write_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_hidden_layers": 28,
        "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960, "torch_dtype": "bfloat16", "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000,
    }))  # fmt: skip


def test_a_config_json_is_planned_without_a_profile(tmp_path):
    write_config(tmp_path)
    slo = {"ttft_ms": 500, "tpot_ms": 50, "objective": 0.99}
    model = {"name": "q", "config": "config.json", "rate": 3.0, "slo": slo}
    document = plan(write(tmp_path, [model], gpu="h100-80gb"), "--no-bound")
    assert document["worst_ratio"] == 1.0
    assert document["models"]["q"]["attainment"] > 0.99


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([A | {"profile": "gpt-9"}], "profile gpt-9: unknown; one of llama-7b"),
        ([A | {"rate": 0}], "model a: rate 0 requests/s; above 0"),
        ([A | {"rate": -3}], "model a: rate -3"),
        ([A, A], "model a: the name is given twice"),
        ([A | {"min_percent": 80, "max_percent": 20}], "min_percent 80, max_percent 20"),
        ([A | {"kv_request_bytes": 2**50}], "model a: weights of"),
        ([A | {"min_replicas": 99}], "min_replicas 99 on 8 GPUs"),
        ([A | {"speed": 3}], "unknown field speed"),
        ([A | {"allowed_tensor": [3]}], "allowed_tensor [3]"),
        ([A | {"name": f"m{i}"} for i in range(100_000)], "100000 models; at most 20000"),
        ([], "no list of models"),
    ],
    ids=["profile", "zero", "negative", "twice", "percents", "kv", "replicas", "field", "tensor",
         "many", "none"],
)  # fmt: skip
def test_bad_input_is_one_clear_message(tmp_path, models, words):
    path = tmp_path / "w.json"
    cluster = {"nodes": 1, "gpus_per_node": 8, "gpu": "a100-80gb"}
    path.write_text(json.dumps({"cluster": cluster, "models": models}))
    found = muxserve("plan", "--workload", path, code=2)
    assert words in found.stderr
    assert found.stdout == ""
    assert len(found.stderr.strip().splitlines()) == 1


def test_a_model_larger_than_any_group_is_refused(tmp_path):
    path = write(tmp_path, [A | {"profile": "llama-65b"}], gpus_per_node=2)
    assert "model a: weights of 130.0 GiB" in muxserve("plan", "--workload", path, code=2).stderr


def test_broken_files_are_refused(tmp_path):
    broken = tmp_path / "w.json"
    broken.write_text("{")
    assert "is not JSON or YAML" in muxserve("plan", "--workload", broken, code=2).stderr
    missing = tmp_path / "none.json"
    assert "cannot be read" in muxserve("plan", "--workload", missing, code=2).stderr
    good = write(tmp_path, [A])
    found = muxserve("plan", "--workload", good, "--current", broken, code=2)
    assert "is not a plan" in found.stderr


def test_ctrl_c_prints_the_best_so_far(tmp_path):
    path = tmp_path / "large.json"
    models = [A | {"name": f"m{i}", "rate": 0.5 + i % 7} for i in range(3000)]
    cluster = {"nodes": 1024, "gpus_per_node": 8, "gpu": "a100-80gb"}
    path.write_text(json.dumps({"cluster": cluster, "models": models}))
    child = subprocess.Popen(
        [*MUXSERVE, "plan", "--workload", str(path), "-o", "json", "--no-bound"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        _wait_for_progress(child)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0
    assert json.loads(out)["deadline_hit"]


def _wait_for_progress(child):
    """A plan was found once progress is shown."""
    assert child.stderr is not None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if "Ctrl-C" in child.stderr.readline():
            return
    raise AssertionError("no progress")


def test_help_shows_examples():
    assert "--frontier" in muxserve("plan", "--help").stdout
    assert "--power-law" in muxserve("workload", "--help").stdout


def test_manifests_are_planned_as_the_operator_would(tmp_path):
    from mux_cli.demo_files import write_manifests
    from mux_cli.tiny_models import write_demo

    write_manifests(tmp_path, write_demo(tmp_path / "models"))
    files = [word for path in sorted(tmp_path.glob("*.yaml")) for word in ("-f", path)]
    document = json.loads(muxserve("plan", *files, "-o", "json", "--no-bound").stdout)
    check_contract(document, 4.0)
    assert document["constraints"]["maxTensorParallelMembersPerUnit"] == 1


def test_measured_step_times_decide_and_a_corrupt_file_is_refused(tmp_path):
    write_config(tmp_path)
    model = {"name": "q", "config": "config.json", "profile": "q.json", "rate": 40.0}
    path = write(tmp_path, [model], gpu="h100-80gb")

    def measured(decode_ms):
        rows = [
            {"tensor": 1, "percent": 100, "batch": batch, "tokens": tokens,
             "prefill_ms": batch, "decode_ms": decode_ms + batch / 50}
            for batch in (1, 64, 256) for tokens in (128, 1024)
        ]  # fmt: skip
        head = {"format": "muxserve-profile", "version": 1, "model": "q", "gpu": "h100-80gb"}
        (tmp_path / "q.json").write_text(json.dumps(head | {"rows": rows}))
        return plan(path, "--no-bound")["gpus_used"]

    assert measured(5.0) < measured(20.0)
    (tmp_path / "q.json").write_text('{"format": "muxserve-profile", "version": 7}')
    assert "version 7" in muxserve("plan", "--workload", path, code=2).stderr
