"""`muxserve simulate` and `muxserve compare` as people and scripts use them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO

import pytest
import yaml

from mux_cli.main import main

MUXSERVE = [sys.executable, "-m", "mux_cli.main"]
SCALES = ["1", "2", "3", "5", "8", "10", "20"]
CHAT = {"name": "chat", "profile": "llama-7b", "rate": 2.0}
CODE = {"name": "code", "profile": "llama-13b", "rate": 0.5}
SHORT = ("--seconds", 30, "--warmup", 10, "--tail", 30, "--seeds", 2, "--jobs", 1)
ONCE = (*SHORT, "--seeds", 1)


@dataclass
class Said:
    """What a command printed."""

    stdout: str
    stderr: str


def muxserve(*words, code=0):
    """The command in this process, which saves its start; what it printed."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            answered = main([str(word) for word in words])
        except SystemExit as stopped:
            answered = stopped.code
    assert answered == code, err.getvalue()[-2000:]
    return Said(out.getvalue(), err.getvalue())


def simulate(path, *words, code=0):
    return muxserve("simulate", "--workload", path, *words, code=code)


def result(path, *words):
    return json.loads(simulate(path, *words, "-o", "json").stdout)


def write(folder, *models, gpus=2, name="w.yaml"):
    path = folder / name
    shape = {"nodes": 1, "gpus_per_node": gpus, "gpu": "a100-80gb"}
    path.write_text(yaml.safe_dump({"cluster": shape, "models": list(models)}))
    return path


@pytest.fixture
def workload(tmp_path):
    return write(tmp_path, CHAT, CODE)


def test_it_prints_the_contract(workload):
    found = result(workload, *SHORT)
    fields = {"goodput", "worst_ratio", "gpus_used", "slo", "slo_e2e", "models", "intervals",
              "events", "seconds"}  # fmt: skip
    assert fields <= set(found)
    assert list(found["slo"]) == list(found["slo_e2e"]) == SCALES
    assert list(found["models"]) == ["chat", "code"]
    for model in found["models"].values():
        assert {"offered", "served", "ratio", "ttft_ms", "tpot_ms", "kv"} <= set(model)
        for name in ("ttft_ms", "tpot_ms"):
            assert list(model[name]) == ["mean", "p50", "p99"]
            assert 0 < model[name]["p50"] <= model[name]["p99"]
        assert 0 < model["kv"]["mean"] < model["kv"]["max"] <= 1
    assert found["goodput"] == pytest.approx(
        sum(min(m["served"], m["offered"]) for m in found["models"].values())
    )
    assert found["worst_ratio"] == min(m["ratio"] for m in found["models"].values())
    low, high = found["intervals"]["goodput"]
    assert low <= found["goodput"] <= high
    assert found["events"] > 1000
    assert (found["steady"], found["interrupted"]) == (True, False)


def test_one_seed_gives_one_result_in_any_process(workload):
    words = ("simulate", "--workload", workload, *SHORT, "-o", "json")
    alone = muxserve(*words).stdout
    ran = subprocess.run([*MUXSERVE, *map(str, (*words, "--jobs", 2))], text=True, check=True,
                         capture_output=True)  # fmt: skip
    pair = ran.stdout

    def without_seconds(text):
        return [line for line in text.splitlines() if not line.startswith(' "seconds": ')]

    assert without_seconds(alone) == without_seconds(pair)
    assert len(without_seconds(alone)) == len(alone.splitlines()) - 1


def test_one_seed_has_no_intervals_and_several_have(workload):
    assert result(workload, *ONCE)["intervals"]["goodput"] is None
    assert result(workload, *ONCE)["intervals"]["slo"]["8"] is None


def test_more_load_on_the_same_plan_waits_longer(workload):
    light, heavy = (result(workload, *ONCE, "--load", load) for load in (0.5, 3))
    assert heavy["gpus_used"] == light["gpus_used"]
    assert heavy["models"]["chat"]["offered"] > 4 * light["models"]["chat"]["offered"]
    chat = [found["models"]["chat"]["tpot_ms"]["mean"] for found in (light, heavy)]
    assert chat[0] < chat[1]


def test_a_plan_from_a_file_runs_under_any_policy(workload, tmp_path):
    plan = tmp_path / "plan.json"
    words = ("plan", "--workload", workload, "--strategy", "spatial-replicas", "--no-bound")
    plan.write_text(muxserve(*words, "-o", "json").stdout)
    found = result(workload, *ONCE, "--plan", plan, "--policy", "adbs-released",
                   "--policy-switch", "sequence_quota=off")  # fmt: skip
    assert (found["strategy"], found["policy"]) == ("spatial-replicas", "adbs-released")
    assert found["gpus_used"] == 2


def test_a_model_without_a_place_is_said_and_gets_nothing(workload, tmp_path):
    plan = tmp_path / "plan.json"
    (tmp_path / "alone").mkdir()
    alone = write(tmp_path / "alone", CHAT)
    plan.write_text(muxserve("plan", "--workload", alone, "--no-bound", "-o", "json").stdout)
    found = result(workload, *ONCE, "--plan", plan)
    assert found["models"]["code"]["served"] == 0
    assert found["worst_ratio"] == 0
    assert found["notes"] == ["no place in the plan, so never served: code"]


TRACE = "time,model,prompt_tokens,output_tokens\n" + "".join(
    f"{at},{'chat' if at % 2 else 'code'},100,20\n" for at in range(5, 50)
)


def test_a_trace_is_run_once_as_it_is(workload, tmp_path):
    csv, jsonl = tmp_path / "t.csv", tmp_path / "t.jsonl"
    csv.write_text(TRACE)
    header, *rows = [line.split(",") for line in TRACE.split()]
    lines = [
        dict(zip(header, (float(r[0]), r[1], int(r[2]), int(r[3])), strict=True)) for r in rows
    ]
    jsonl.write_text("\n".join(json.dumps(line) for line in lines))
    one, other = (result(workload, *SHORT, "--trace", path) for path in (csv, jsonl))
    assert one["models"] == other["models"]
    assert one["models"]["chat"]["offered"] == pytest.approx(15 / 30)
    assert (one["seeds"], one["steady"]) == (1, None)
    assert "a trace is run once" in one["notes"][0]


def test_rates_that_move_move_what_is_offered(workload, tmp_path):
    doubled = result(workload, *ONCE, "--curve", "0=1,25=4")
    assert doubled["models"]["chat"]["offered"] > 3.5
    assert doubled["steady"] is None
    twins = write(tmp_path, CHAT, {**CHAT, "name": "cold", "rate": 0.1})
    swapped = result(twins, *ONCE, "--swap-at", 10)
    assert swapped["models"]["cold"]["offered"] > 5 * swapped["models"]["chat"]["offered"]
    day = result(workload, *ONCE, "--curve", "day:0", "--day", 100)
    assert 0 < day["models"]["chat"]["offered"] < 2.0


@pytest.fixture
def twins(tmp_path):
    return write(tmp_path, {**CHAT, "rate": 12.0}, {**CHAT, "name": "cold", "rate": 0.2}, gpus=4)


SWAPPED = ("--seconds", 150, "--warmup", 10, "--tail", 20, "--seeds", 1, "--jobs", 1,
           "--swap-at", 60, "--replan", 30)  # fmt: skip


def test_planning_again_follows_demand_and_shows_what_moved(twins):
    found = result(twins, *SWAPPED)
    assert found["moves"]
    started = [step for move in found["moves"] for step in move["steps"]
               if step["kind"] == "StartEngine" and step["model"] == "cold"]  # fmt: skip
    assert started
    assert started[0]["ready_s"] > 10
    assert "what moved" in simulate(twins, *SWAPPED).stdout
    static = result(twins, *SWAPPED[:-2])
    assert static["moves"] == []
    assert found["models"]["cold"]["served"] > static["models"]["cold"]["served"]


def test_static_replanned_and_oracle_stand_side_by_side(twins):
    words = ("compare", "--workload", twins, *SWAPPED, "--oracle", "-o", "json")
    found = json.loads(muxserve(*words).stdout)
    labels = ["default/adbs", "default/adbs replanned", "default/adbs oracle"]
    assert [system["label"] for system in found["systems"]] == labels
    refused = muxserve(*words, "--pair", "default/fcfs", "--policy", "fcfs", code=2)
    assert "none of the systems is default/adbs" in refused.stderr


def test_little_and_the_books_are_shown_on_demand(workload):
    found = result(workload, *ONCE, "--check")["check"]
    assert found["holds"]
    for model in found["little"].values():
        assert model["counted"] == pytest.approx(model["logged"])
    assert "Little's law" in simulate(workload, *ONCE, "--check").stdout


def test_tables_tell_the_same_to_people(workload):
    said = simulate(workload, *SHORT).stdout
    for word in ("SLO attainment", "worst LLM", "chat", "code", "2 seeds", "requests/s on"):
        assert word in said
    assert yaml.safe_load(simulate(workload, *ONCE, "-o", "yaml").stdout)["seeds"] == 1


def test_pictures_are_written(workload, tmp_path):
    simulate(workload, *ONCE, "--plot", tmp_path / "pictures", "--sweep", 1, 2)
    found = {path.name: path.read_bytes()[:4] for path in (tmp_path / "pictures").iterdir()}
    assert set(found) == {"attainment.png", "goodput.png", "timeline.png", "kv.png", "batch.png"}
    assert set(found.values()) == {b"\x89PNG"}


def test_a_run_in_which_no_queue_rests_says_so_instead_of_averaging(tmp_path):
    path = write(tmp_path, {**CHAT, "rate": 60.0}, gpus=1)
    words = ("--seconds", 60, "--warmup", 10, "--tail", 0, "--seeds", 1)
    found = simulate(path, *words, "-o", "json", code=2)
    assert found.stdout == ""
    assert "no steady state: all 1 queues grow" in found.stderr
    printed = result(path, *words, "--overload")
    assert (printed["steady"], printed["growing"]) == (False, ["chat"])
    assert "still grew" in simulate(path, *words, "--overload").stdout


HOLES = TRACE.replace("10,code,100,20", "10,code,,20")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seconds", "0"], "--seconds 0: above 0"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--warmup", "-1"], "--warmup -1: seconds, at least 0"),
        (["--tail", "-1"], "--tail -1"),
        (["--seeds", "0"], "--seeds 0: 1 to 1000"),
        (["--jobs", "0"], "--jobs 0: at least 1"),
        (["--load", "-2"], "--load -2: above 0"),
        (["--gpus", "0"], "--gpus 0: at least 1"),
        (["--policy", "lottery"], "invalid choice: 'lottery'"),
        (["--strategy", "hope"], "invalid choice: 'hope'"),
        (["--policy-switch", "swapped_return=off"], "policy adbs: has no switches"),
        (["--policy-switch", "loud"], "--switch loud: write NAME=on or NAME=off"),
        (["--curve", "night"], "--curve night: write day:LOW"),
        (["--curve", "day:2"], "--curve day:2: the lowest rate is a part of the highest"),
        (["--curve", "5=1"], "the first at 0"),
        (["--oracle"], "--oracle: says with which rates to plan again; add --replan"),
        (["--replan", "0"], "--replan 0: seconds between two plans, above 0"),
        (["--kv", "half"], "KV half: not estimated, planned and no part of GPU memory"),
        (["--replan", "--kv", "0.5"], "--kv 0.5: with --replan members come and go"),
        (["--replan", "--policy", "fcfs"], "default/fcfs cannot; only default/adbs plans"),
        (["--replan", "--oracle", "--trace", "trace.csv"], "--oracle: a trace has requests"),
        (["--profiles", "w.yaml"], "w.yaml"),
        (["--swap-at", "9"], "no two LLMs of the workload cost the same"),
        (["--trace", "missing.csv"], "--trace missing.csv: cannot be read"),
        (["--trace", "holes.csv"], "trace holes.csv, line 7: prompt_tokens is missing"),
        (["--trace", "late.csv"], "none inside the window from 10 to 40 s"),
        (["--trace", "trace.csv", "--load", "2"], "--trace: holds the requests as they are"),
        (["--plan", "w.yaml"], "--plan w.yaml: is not a plan"),
        (["--plan", "other.json"], "unit u0, model other: not in the workload"),
        (["--plan", "far.json"], "the workload has no such GPU"),
        (["--plan", "twice.json"], "the GPU is already of unit u0"),
        (["--plan", "crossed.json"], "model chat: tensor 2 on 1 GPUs"),
        (["--unit", "u99"], "--unit u99: not in the plan"),
        (["--report", "none/r.html"], "--report none/r.html: its folder does not exist"),
        (["--sweep", "1", "-1"], "--sweep 1.0 -1.0: factors on the rates"),
        (["--plot", "w.yaml"], "--plot w.yaml: cannot be made"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_and_exits_2(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, CHAT, CODE)
    (tmp_path / "trace.csv").write_text(TRACE)
    (tmp_path / "holes.csv").write_text(HOLES)
    (tmp_path / "late.csv").write_text(TRACE.splitlines()[0] + "\n500,chat,1,1\n")
    for name, units in PLANS.items():
        (tmp_path / name).write_text(json.dumps({"units": units}))
    quick = ("--seconds", 30, "--warmup", 10, "--tail", 0, "--seeds", 1)
    found = simulate("w.yaml", *quick, *words, code=2)
    assert said in found.stderr
    assert found.stdout == ""
    assert "Traceback" not in found.stderr


def a_unit(name, *, gpus=(0,), model="chat", tensor=1):
    member = {"model": model, "replica": 0, "tensor": tensor, "rate": 1.0, "prefill_percent": 100,
              "decode_percent": 100, "kv_bytes": 0}  # fmt: skip
    return {"id": name, "node": "node-0", "gpus": list(gpus), "members": [member]}


PLANS = {
    "other.json": [a_unit("u0", model="other")],
    "far.json": [a_unit("u0", gpus=(7,))],
    "twice.json": [a_unit("u0"), a_unit("u1", model="code")],
    "crossed.json": [a_unit("u0", tensor=2)],
}


def interrupted(path, *words, code=0):
    """Starts a run of hours, interrupts it once it says how far it is; what it printed."""
    long = ("--seconds", 10_000_000, "--warmup", 5, "--seeds", 3, "-o", "json")
    asked = ("simulate", "--workload", path, *long, *words)
    child = subprocess.Popen([*MUXSERVE, *map(str, asked)], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)  # fmt: skip
    said = []
    try:
        for line in child.stderr:
            said.append(line)
            if re.match(r"simulated \d{3}", line):
                break
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    said.append(err)
    assert child.returncode == code, "".join(said)
    return out, "".join(said)


@pytest.mark.parametrize("jobs", [1, 2], ids=["in this process", "in two"])
def test_ctrl_c_prints_what_there_is_marked_as_such(workload, jobs):
    out, err = interrupted(workload, "--jobs", jobs)
    found = json.loads(out)
    assert found["interrupted"]
    assert found["seeds"] == jobs
    assert found["models"]["chat"]["served"] > 0
    assert "Traceback" not in err


def test_ctrl_c_inside_the_warm_up_measured_nothing(workload):
    out, err = interrupted(workload, "--warmup", 10_000_000, code=1)
    assert out == ""
    assert "inside the warm-up" in err


def test_ctrl_c_leaves_no_process_behind(workload):
    before = time.time()
    interrupted(workload, "--jobs", 2)
    mine = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _runs(pid, workload, before)]
    assert mine == []


def _runs(pid, workload, since):
    try:
        with open(f"/proc/{pid}/cmdline") as words, open(f"/proc/{pid}/environ") as environ:
            ours = os.environ.get("PYTEST_CURRENT_TEST", "-") in environ.read()
            return (
                ours and "spawn_main" in words.read() and os.stat(f"/proc/{pid}").st_ctime > since
            )
    except OSError:
        return False


def test_compare_pairs_systems_seed_by_seed(workload):
    words = ("compare", "--workload", workload, *SHORT, "--strategy", "default",
             "spatial-replicas", "--policy", "adbs", "fcfs")  # fmt: skip
    found = json.loads(muxserve(*words, "-o", "json").stdout)
    labels = [system["label"] for system in found["systems"]]
    assert labels == ["default/adbs", "default/fcfs", "spatial-replicas/adbs",
                      "spatial-replicas/fcfs"]  # fmt: skip
    assert found["baseline"] == labels[0]
    results = {s["label"]: s["result"] for s in found["systems"]}
    offered = {label: r["models"]["chat"]["offered"] for label, r in results.items()}
    assert len(set(offered.values())) == 1
    for label, difference in found["differences"].items():
        value = results[label]["goodput"] - results["default/adbs"]["goodput"]
        assert difference["goodput"]["value"] == pytest.approx(value)
        assert list(difference["slo"]) == SCALES
        low, high = difference["goodput"]["interval"]
        assert low <= value <= high


def test_comparing_a_simulation_with_itself_alone_is_refused(workload):
    found = muxserve("compare", "--workload", workload, *SHORT, "--pair", "default/adbs", code=2)
    assert "compare: 1 system; give at least two" in found.stderr
    found = muxserve("compare", "--workload", workload, *SHORT, "--pair", "default", code=2)
    assert "--pair default: STRATEGY/POLICY" in found.stderr


def test_a_comparison_names_its_baseline_for_people(tmp_path):
    workload = write(tmp_path, CHAT, CODE, gpus=4)
    words = ("compare", "--workload", workload, *SHORT, "--pair", "default/adbs",
             "muxserve-released/adbs-released")  # fmt: skip
    said = muxserve(*words).stdout
    assert "minus default/adbs, paired by seed" in said
    assert "muxserve-released/adbs-released" in said
