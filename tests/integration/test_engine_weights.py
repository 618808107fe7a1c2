"""Weights on their way from files into the arena: shards, other dtypes, changed files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_builders import BOTH, MODELS, KnownModel, World, greedy, torch_host
from mux_cli.tiny_models import write
from mux_core.errors import SpecError, UnsupportedModel
from mux_runtime.engines.checkpoint_files import CorruptCheckpoint
from mux_runtime.engines.host import GeometryMismatch, UnsupportedVersion, WeightsHandle
from mux_runtime.engines.torch.engine import TorchEngine
from mux_runtime.engines.torch.start import Settings, TorchStart

pytestmark = pytest.mark.engine


def run(model: KnownModel, prompt: tuple[int, ...], outputs: int, **settings: object) -> object:
    """The greedy tokens of one request, and the host that made them."""
    world = World()
    driver = world.drive(torch_host(model, world, BOTH, **settings), model.name)
    driver.add("a", prompt, greedy(outputs))
    driver.run()
    world.assert_empty()
    return driver.output("a")


@pytest.fixture
def llama(tmp_path: Path) -> KnownModel:
    return KnownModel("llama", write(MODELS["llama"], tmp_path / "llama"))


def test_shards_are_read_like_one_file(llama: KnownModel) -> None:
    prompt, tokens = llama.sure_prompt(9, 8)
    tensors = load_file(llama.folder / "model.safetensors")
    (llama.folder / "model.safetensors").unlink()
    names = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(sorted(tensors))}
    for shard in set(names.values()):
        save_file({n: t for n, t in tensors.items() if names[n] == shard}, llama.folder / shard)
    (llama.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert run(llama, prompt, 8) == tokens


def test_bfloat16_files_run_in_float32_as_in_transformers(tmp_path: Path) -> None:
    folder = write(replace(MODELS["llama"], dtype="bfloat16"), tmp_path / "bf16")
    model = KnownModel("llama", folder)
    prompt, tokens = model.sure_prompt(9, 8)
    assert run(model, prompt, 8, dtype="float32") == tokens


def test_bfloat16_runs_as_itself_close_to_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write(replace(MODELS["qwen3"], dtype="bfloat16"), tmp_path / "bf16")
    model = KnownModel("qwen3", folder)
    start = TorchStart(Settings(model_dir=folder, pool="", arena="a", phases=BOTH, unit_bytes=2048))
    assert start.geometry.block_tokens == 16
    prompt = model.prompt(12)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        scores = reference(torch.tensor([prompt])).logits[0, -1].float()
    token = run(model, prompt, 1)[0]  # type: ignore[index]
    # bfloat16 has 8 bits: kernels that add in another order differ in the last of them.
    assert float(scores.max() - scores[token]) <= 2 * 2**-8 * float(scores.abs().max())


def test_llama3_rope_scaling_gives_transformers_tokens(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    made = replace(MODELS["llama"], extra={"rope_parameters": scaling, "attention_bias": True,
                                           "mlp_bias": True})  # fmt: skip
    model = KnownModel("llama", write(made, tmp_path / "scaled"))
    prompt, tokens = model.sure_prompt(100, 8)
    assert run(model, prompt, 8) == tokens


def test_a_second_host_of_changed_files_is_refused(llama: KnownModel) -> None:
    world = World()
    torch_host(llama, world)
    config = json.loads((llama.folder / "config.json").read_text())
    (llama.folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(GeometryMismatch, match="changed"):
        torch_host(llama, world)


def test_a_missing_tensor_is_named(llama: KnownModel) -> None:
    path = llama.folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(CorruptCheckpoint, match=r"model\.norm\.weight"):
        torch_host(llama, World())


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"dtype": "int4"}, UnsupportedModel, "int4"),
        ({"max_model_len": 4096}, SpecError, "4096.*2048"),
        ({"unit_bytes": 64}, SpecError, "head unit of 64 bytes"),
    ],
)
def test_what_the_settings_ask_for_and_cannot_be(
    llama: KnownModel, settings: dict[str, object], error: type[SpecError], named: str
) -> None:
    asked = {"model_dir": llama.folder, "pool": "", "arena": "a", "phases": BOTH,
             "unit_bytes": 2048, **settings}  # fmt: skip
    with pytest.raises(error, match=named):
        TorchStart(Settings(**asked)).describe()  # type: ignore[arg-type]


def test_a_device_this_version_does_not_run_on_is_refused(llama: KnownModel) -> None:
    start = TorchStart(Settings(model_dir=llama.folder, pool="", arena="a", phases=BOTH,
                                unit_bytes=2048))  # fmt: skip
    with pytest.raises(UnsupportedVersion, match="cuda"):
        TorchEngine(start).open(
            World().pool, WeightsHandle(model_dir=str(llama.folder), arena="a"), "cuda"
        )


def test_max_model_len_bounds_a_request(llama: KnownModel) -> None:
    assert len(run(llama, llama.prompt(10), 50, max_model_len=16)) == 6  # type: ignore[arg-type]
