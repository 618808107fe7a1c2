"""A checkpoint's files: config.json as a dictionary and the headers of its safetensors shards.

Standard library only; reads headers and sizes, so a checkpoint of 100 GB is checked in
milliseconds. Every error names the file.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mux_core.checkpoint import ModelConfig, read_config, read_eos
from mux_core.errors import SpecError, UnsupportedModel

WHOLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
DTYPES: Final[Mapping[str, str]] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_HEADER: Final = 8
_MAX_HEADER: Final = 100_000_000
_ITEMSIZE: Final[Mapping[str, int]] = {"F32": 4, "BF16": 2, "F16": 2}


class CheckpointMissing(SpecError):
    """The folder, or a file that must be in it, is not there."""


class CheckpointDenied(SpecError):
    """A file is there and may not be read."""


class CorruptCheckpoint(SpecError):
    """A file is damaged or cut; names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """One tensor: where its bytes lie. `dtype` as in `DTYPES`' values."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointTensors:
    """All tensors by name; `digest` changes with any header or size."""

    tensors: Mapping[str, TensorFile]
    digest: str


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointMissing, CheckpointDenied, CorruptCheckpoint."""
    try:
        document = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path}: not JSON ({error}); copy the file again") from error
    if not isinstance(document, dict):
        raise CorruptCheckpoint(f"{path}: holds {type(document).__name__}, not an object; copy "
                                "the file again")  # fmt: skip
    return document


def read_bytes(path: Path, limit: int = -1, offset: int = 0) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointMissing(f"{path}: not found; a checkpoint folder in Hugging Face layout "
                                "has it") from error  # fmt: skip
    except PermissionError as error:
        raise CheckpointDenied(
            f"{path}: may not be read by user {os.getuid()}; fix its mode"
        ) from error


def read_model_config(folder: Path) -> ModelConfig:
    """config.json, with the ends of text that generation_config.json adds."""
    config = read_config(read_json(folder / "config.json"))
    extra = folder / "generation_config.json"
    if not extra.exists():
        return config
    ids = set(read_eos(read_json(extra))) | set(config.eos_token_ids)
    return replace(config, eos_token_ids=tuple(sorted(ids)))


def read_tensors(folder: Path) -> CheckpointTensors:
    """All tensor headers: of one file, or of the shards an index names."""
    digest = hashlib.sha256(read_bytes(folder / "config.json"))
    tensors: dict[str, TensorFile] = {}
    for path in _shards(folder):
        header, start = _header(path)
        size = path.stat().st_size
        digest.update(b"%s %d " % (path.name.encode(), size))
        digest.update(json.dumps(header, sort_keys=True).encode())
        for name, entry in header.items():
            if name != "__metadata__":
                tensors[name] = _tensor(path, name, entry, start, size)
        _check_layout(path, tensors, start, size)
    _check_index(folder, tensors)
    return CheckpointTensors(tensors=tensors, digest=digest.hexdigest())


def _shards(folder: Path) -> list[Path]:
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    if (folder / INDEX).exists():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    others = sorted(x.name for x in folder.glob("*.bin")) + sorted(
        x.name for x in folder.glob("*.gguf")
    )
    if others:
        raise UnsupportedModel(f"{folder}: weights are {others[0]}; supported: safetensors; "
                               "convert with save_pretrained")  # fmt: skip
    raise CheckpointMissing(f"{folder}: neither {WHOLE} nor {INDEX}; copy the weights")


def _weight_map(folder: Path) -> dict[str, str]:
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CorruptCheckpoint(f"{folder / INDEX}: has no weight_map; copy the file again")
    for name in names.values():
        if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
            raise CorruptCheckpoint(f"{folder / INDEX}: weight_map names {name!r}, which is no "
                                    "file of this folder; copy the file again")  # fmt: skip
    return names


def _check_index(folder: Path, tensors: Mapping[str, TensorFile]) -> None:
    if (folder / WHOLE).exists():
        return
    for name, shard in sorted(_weight_map(folder).items()):
        if name not in tensors:
            raise CorruptCheckpoint(f"{folder / shard}: lacks tensor {name}, which {INDEX} says "
                                    "it has; copy the file again")  # fmt: skip


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A shard's header and where its data starts."""
    length = int.from_bytes(read_bytes(path, _HEADER), "little")
    size = path.stat().st_size
    if size < _HEADER or length > min(_MAX_HEADER, size - _HEADER):
        raise CorruptCheckpoint(f"{path}: {size} bytes hold no safetensors header of {length} "
                                "bytes; the file is cut or damaged, copy it again")  # fmt: skip
    try:
        header = json.loads(read_bytes(path, length, _HEADER))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path}: header is not JSON ({error}); copy it again") from error
    if not isinstance(header, dict):
        raise CorruptCheckpoint(f"{path}: header is no object; copy it again")
    return header, _HEADER + length


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> TensorFile:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(x) for x in entry["shape"])
        begin, end = (int(x) for x in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(f"{path}: header of tensor {name} is {entry!r:.200}; copy the file "
                                "again") from error  # fmt: skip
    if dtype not in DTYPES:
        raise UnsupportedModel(f"{path}: tensor {name} is {dtype}; supported: {', '.join(DTYPES)}")
    count = 1
    for length in shape:
        count *= length
    if begin < 0 or end - begin != count * _ITEMSIZE[dtype]:
        raise CorruptCheckpoint(f"{path}: tensor {name} of shape {list(shape)} {dtype} spans bytes "
                                f"{begin} to {end}; copy the file again")  # fmt: skip
    if start + end > size:
        raise CorruptCheckpoint(f"{path}: tensor {name} ends at byte {start + end}, the file at "
                                f"{size}; it is truncated, copy it again")  # fmt: skip
    return TensorFile(
        path=path, dtype=DTYPES[dtype], shape=shape, offset=start + begin, nbytes=end - begin
    )


def _check_layout(path: Path, tensors: Mapping[str, TensorFile], start: int, size: int) -> None:
    """A shard's tensors follow one another without overlap or hole, up to its end."""
    own = {name: t for name, t in tensors.items() if t.path == path}
    end, before = start, "the header"
    for name, t in sorted(own.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if t.offset != end:
            fault = (f"overlaps {before}, which ends at" if t.offset < end
                     else f"leaves a hole after {before}, which ends at")  # fmt: skip
            raise CorruptCheckpoint(f"{path}: tensor {name} from byte {t.offset} {fault} byte "
                                    f"{end}; the file is damaged, copy it again")  # fmt: skip
        end, before = end + t.nbytes, f"tensor {name}"
    if end != size:
        raise CorruptCheckpoint(f"{path}: its tensors end at byte {end}, the file at {size}; "
                                "copy it again")  # fmt: skip
