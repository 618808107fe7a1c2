"""What a start of `muxserve up` refuses model by model, and how a start is broken off."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mux_cli.demo_files import llm_manifest, write_manifests
from mux_cli.tiny_models import TinyModel, write
from up_server import muxserve_up, shared_memory, up_on

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return write(TinyModel(family="llama", layers=1, hidden=64, heads=2, kv_heads=1, head_dim=32,
                           intermediate=64), folder)  # fmt: skip


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 5000)


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{nope")


def quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    (folder / "config.json").write_text(json.dumps(config))


SPOILED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "garbage": (garbage, "CorruptCheckpoint", "model.safetensors"),
    "empty": (empty, "CorruptCheckpoint", "0 bytes"),
    "width": (other_width, "CorruptCheckpoint", "config.json makes it"),
    "nojson": (no_json, "CorruptCheckpoint", "not JSON"),
    "quantised": (quantised, "UnsupportedModel", "quantization_config"),
}


def test_each_broken_checkpoint_is_named_with_its_reason_and_the_others_serve(
    tiny: Path, tmp_path: Path
) -> None:
    models = {"good": tiny}
    for name, (spoil, _, _) in SPOILED.items():
        models[name] = tmp_path / name
        shutil.copytree(tiny, models[name])
        spoil(models[name])
    manifests = write_manifests(tmp_path / "manifests", models)
    long = llm_manifest("long", tiny).replace("  model:\n", "  model:\n    maxModelLen: 900000\n")
    (manifests / "long.yaml").write_text(long)
    with up_on(manifests, tmp_path / "data", "--keep-going") as up:
        up.wait_ready()
        assert up.served() == {"good"}
        for name, (_, reason, words) in SPOILED.items():
            assert up.said(f"{name}: {reason} (permanent)"), up.lines
            assert words in up.model(name)["message"]
        assert up.said("long: UnsupportedModel (permanent)"), up.lines
        assert "2 to" in up.model("long")["message"]
        assert up.end() == 0
        assert up.leftovers() == []


@pytest.mark.parametrize("after", ["the first process", "an engine host"])
def test_a_start_that_is_broken_off_leaves_nothing(tiny: Path, tmp_path: Path, after: str) -> None:
    before = shared_memory()
    word = "mux_runtime" if after == "the first process" else "mux_runtime.engines"
    with muxserve_up(tmp_path, {"one": tiny}, wait=False) as up:
        while not up.role(word):
            assert up.process.poll() is None
            time.sleep(0.05)
        assert up.end(signal.SIGTERM) == 0
        assert up.url == ""
        assert up.leftovers() == []
    assert shared_memory() <= before
