"""inspect over real safetensors files, whole and damaged in every way we could think of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mux_core.checkpoint import (
    MAX_REPORT_BYTES,
    ResolvedModel,
    Unresolved,
    from_json,
    read_config,
    to_json,
)
from mux_core.errors import SpecError
from mux_core.reasons import Reason
from mux_runtime.engines.torch.layout import layout
from mux_runtime.inspect import inspect, main

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
    "max_position_embeddings": 64, "dtype": "float32",
}  # fmt: skip


def write(folder: Path, *, shards: int = 1, **config: object) -> Path:
    """A checkpoint of zeros."""
    document = {**CONFIG, **config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "tokenizer.json").write_text("{}")
    parts = [part for w in layout(read_config(document), 4).weights for part in w.parts]
    tensors = {name: np.zeros(shape, np.float32) for name, shape in parts}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = {name: f"model-{index % shards + 1:05}-of-{shards:05}.safetensors"
             for index, name in enumerate(tensors)}  # fmt: skip
    for shard in set(names.values()):
        save_file({n: t for n, t in tensors.items() if names[n] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_whole_checkpoint_is_resolved(tmp_path: Path, shards: int) -> None:
    found = inspect(write(tmp_path, shards=shards))
    assert isinstance(found, ResolvedModel)
    assert found.geometry == read_config(CONFIG).geometry
    assert found.weight_bytes >= found.geometry.weight_bytes
    assert not found.chat_template
    assert found.max_model_len == 64


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    tied = inspect(write(tmp_path / "tied", tie_word_embeddings=True))
    apart = inspect(write(tmp_path / "apart"))
    assert isinstance(tied, ResolvedModel)
    assert isinstance(apart, ResolvedModel)
    assert apart.weight_bytes - tied.weight_bytes == 40 * 16 * 4


@pytest.mark.parametrize(
    ("name", "content"),
    [("chat_template.jinja", "{{ x }}"), ("tokenizer_config.json", '{"chat_template": "{{ x }}"}')],
)
def test_a_chat_template_is_seen_wherever_it_is(tmp_path: Path, name: str, content: str) -> None:
    (write(tmp_path) / name).write_text(content)
    found = inspect(tmp_path)
    assert isinstance(found, ResolvedModel)
    assert found.chat_template


def test_the_digest_tells_files_apart(tmp_path: Path) -> None:
    first, same = inspect(write(tmp_path / "a")), inspect(write(tmp_path / "b"))
    other = inspect(write(tmp_path / "c", rms_norm_eps=0.5))
    assert isinstance(first, ResolvedModel)
    assert first == same
    assert isinstance(other, ResolvedModel)
    assert other.digest != first.digest


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:keep])

    return damage


def grow(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")


def overwrite(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def remove(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def resave(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Saves the tensors again after `change`."""

    def damage(folder: Path) -> None:
        from safetensors.numpy import load_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def shift(name: str, by: int) -> Callable[[Path], None]:
    """Lets a tensor of an otherwise whole file begin and end `by` bytes later."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header[name]["data_offsets"] = [x + by for x in header[name]["data_offsets"]]
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return damage


def in_file_order(folder: Path) -> list[str]:
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: header[name]["data_offsets"][0])


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "reason", "named"),
    [
        (remove("config.json"), Reason.NOT_FOUND, "config.json"),
        (overwrite("config.json", b"{"), Reason.CORRUPT_CHECKPOINT, "config.json: not JSON"),
        (overwrite("config.json", b"\xff\xfe\x00"), Reason.CORRUPT_CHECKPOINT, "config.json"),
        (overwrite("config.json", b"[]"), Reason.CORRUPT_CHECKPOINT, "config.json"),
        (overwrite("config.json", b"{}"), Reason.UNSUPPORTED_MODEL, "architectures"),
        (remove("tokenizer.json"), Reason.TOKENIZER_MISSING, "tokenizer.json"),
        (remove("model.safetensors"), Reason.NOT_FOUND, "model.safetensors"),
        (cut("model.safetensors", 0), Reason.CORRUPT_CHECKPOINT, "model.safetensors"),
        (cut("model.safetensors", 5), Reason.CORRUPT_CHECKPOINT, "model.safetensors"),
        (cut("model.safetensors", 100), Reason.CORRUPT_CHECKPOINT, "cut or damaged"),
        (cut("model.safetensors", -1), Reason.CORRUPT_CHECKPOINT, "truncated"),
        (grow, Reason.CORRUPT_CHECKPOINT, "model.safetensors"),
        (overwrite("model.safetensors", b"\xff" * 64), Reason.CORRUPT_CHECKPOINT, "header"),
        (overwrite("model.safetensors", b"\x02" + bytes(7) + b"[]"), Reason.CORRUPT_CHECKPOINT, ""),
        (resave(lambda t: t.pop(NORM)), Reason.CORRUPT_CHECKPOINT, NORM),
        (resave(lambda t: t.update({NORM: np.zeros(3, np.float32)})), Reason.CORRUPT_CHECKPOINT,
         "shape [3]"),
        (resave(lambda t: t.update({NORM: np.zeros(16, np.int8)})), Reason.UNSUPPORTED_MODEL, "I8"),
    ],
)  # fmt: skip
def test_damage_is_told_with_the_file(
    tmp_path: Path, damage: Callable[[Path], None], reason: Reason, named: str
) -> None:
    damage(write(tmp_path))
    found = inspect(tmp_path)
    assert isinstance(found, Unresolved)
    assert found.reason is reason, found.message
    assert named in found.message
    assert str(tmp_path) in found.message or "config.json" in found.message


@pytest.mark.parametrize(
    ("by", "fault"),
    [
        pytest.param(-4, "overlaps tensor {}, which ends at byte", id="overlap"),
        pytest.param(4, "leaves a hole after tensor {}, which ends at byte", id="hole"),
    ],
)
def test_tensors_that_do_not_follow_one_another_are_both_named(
    tmp_path: Path, by: int, fault: str
) -> None:
    first, second, *_ = in_file_order(write(tmp_path))
    shift(second, by)(tmp_path)
    found = inspect(tmp_path)
    assert isinstance(found, Unresolved)
    assert found.reason is Reason.CORRUPT_CHECKPOINT
    assert f"tensor {second} from byte" in found.message
    assert fault.format(first) in found.message


def test_a_hole_before_the_first_tensor_is_found(tmp_path: Path) -> None:
    first, *_ = in_file_order(write(tmp_path))
    shift(first, 4)(tmp_path)
    found = inspect(tmp_path)
    assert isinstance(found, Unresolved)
    assert f"tensor {first} from byte" in found.message
    assert "leaves a hole after the header" in found.message


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    file = write(tmp_path) / "model.safetensors"
    found = inspect(file)
    assert found == Unresolved(
        reason=Reason.NOT_FOUND, message=f"{file}: is a file; name its folder"
    )


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (remove("model-00002-of-00003.safetensors"), "model-00002-of-00003.safetensors"),
        (overwrite("model.safetensors.index.json", b'{"weight_map": {}}'), "weight_map"),
        (overwrite("model.safetensors.index.json", b'{"weight_map": {"a": "../x"}}'), "../x"),
        (cut("model-00003-of-00003.safetensors", -2), "model-00003-of-00003.safetensors"),
    ],
)
def test_damaged_shards_are_told_with_the_shard(
    tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    damage(write(tmp_path, shards=3))
    found = inspect(tmp_path)
    assert isinstance(found, Unresolved)
    assert named in found.message


def test_a_tensor_the_index_promises_is_missed(tmp_path: Path) -> None:
    path = write(tmp_path, shards=3) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    found = inspect(tmp_path)
    assert isinstance(found, Unresolved)
    assert "lacks tensor model.extra" in found.message


def test_weights_in_another_format_are_named(tmp_path: Path) -> None:
    remove("model.safetensors")(write(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    found = inspect(tmp_path)
    assert isinstance(found, Unresolved)
    assert found.reason is Reason.UNSUPPORTED_MODEL
    assert "pytorch_model.bin" in found.message


@pytest.mark.parametrize(("whole", "code"), [(True, 0), (False, 2)])
def test_the_command_prints_one_line_and_exits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: bool, code: int
) -> None:
    if whole:
        write(tmp_path)
    assert main([str(tmp_path)]) == code
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert from_json(printed) == inspect(tmp_path)


def test_a_report_always_fits_a_termination_message() -> None:
    for message in ("x" * 100_000, "\U0001f600" * 5000, '"\\' * 5000):
        text = to_json(Unresolved(reason=Reason.NOT_FOUND, message=message))
        assert len(text.encode()) < MAX_REPORT_BYTES
        assert isinstance(from_json(text), Unresolved)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"ok": true}', '{"ok": false}',
                                  '{"ok": false, "reason": "Boredom", "message": ""}'])  # fmt: skip
def test_anything_else_is_no_report(text: str) -> None:
    with pytest.raises(SpecError, match="inspect result"):
        from_json(text)
