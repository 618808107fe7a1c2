"""`python -m mux_runtime inspect DIR`: can this checkpoint be served, and what does it need?

Prints one JSON object, always under 4096 bytes (a container's termination message), and exits 0,
or 2 when the checkpoint cannot be served. Reads headers, never weights; standard library only.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from mux_core.checkpoint import ModelConfig, ResolvedModel, Unresolved, to_json
from mux_core.errors import SpecError
from mux_core.reasons import Reason
from mux_core.units import Bytes
from mux_runtime.engines.checkpoint_files import (
    CheckpointDenied,
    CheckpointMissing,
    CorruptCheckpoint,
    TensorFile,
    read_json,
    read_model_config,
    read_tensors,
)
from mux_runtime.engines.torch.layout import layout

_TOKENIZERS: Final[Sequence[tuple[str, ...]]] = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("vocab.json", "merges.txt"),
)
"""Any of these sets of files makes a tokenizer."""


class TokenizerMissing(SpecError):
    """The folder has weights and no tokenizer."""


_REASONS: Final[Mapping[type[SpecError], Reason]] = {
    CheckpointMissing: Reason.NOT_FOUND,
    CheckpointDenied: Reason.ACCESS_DENIED,
    CorruptCheckpoint: Reason.CORRUPT_CHECKPOINT,
    TokenizerMissing: Reason.TOKENIZER_MISSING,
}


def main(argv: Sequence[str]) -> int:
    """Inspects one folder; 0 if it can be served, else 2."""
    if len(argv) != 1:
        print("usage: python -m mux_runtime inspect DIR", file=sys.stderr)
        return 2
    found = inspect(Path(argv[0]))
    print(to_json(found))
    return 0 if isinstance(found, ResolvedModel) else 2


def inspect(folder: Path) -> ResolvedModel | Unresolved:
    """What the files say. Raises nothing for any content of the folder."""
    try:
        return _resolve(folder)
    except SpecError as error:
        reason = _REASONS.get(type(error), Reason.UNSUPPORTED_MODEL)
        return Unresolved(reason=reason, message=str(error))
    except PermissionError as error:
        return Unresolved(reason=Reason.ACCESS_DENIED, message=f"{error.filename}: may not be "
                          "read; fix its mode")  # fmt: skip
    except OSError as error:
        return Unresolved(reason=Reason.INSPECTION_FAILED, message=f"{folder}: {error}")


def _resolve(folder: Path) -> ResolvedModel:
    if folder.is_file():
        raise CheckpointMissing(f"{folder}: is a file; name its folder")
    if not folder.is_dir():
        raise CheckpointMissing(f"{folder}: no such folder; check the model's uri")
    config = read_model_config(folder)
    found = read_tensors(folder)
    _check_tensors(folder, config, found.tensors)
    _check_tokenizer(folder)
    nbytes = layout(config, config.geometry.dtype.itemsize).nbytes
    return ResolvedModel(
        geometry=config.geometry,
        weight_bytes=Bytes(nbytes),
        chat_template=_has_chat_template(folder),
        digest=found.digest,
    )


def _check_tensors(folder: Path, config: ModelConfig, tensors: Mapping[str, TensorFile]) -> None:
    """Raises CorruptCheckpoint unless every weight is there in its shape."""
    parts = [part for weight in layout(config, 4).weights for part in weight.parts]
    missing = [name for name, _ in parts if name not in tensors]
    if missing:
        raise CorruptCheckpoint(
            f"{folder}: {len(missing)} of {len(parts)} tensors are missing from "
            f"{_names(t.path for t in tensors.values())}: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; copy all weights again"
        )
    for name, shape in parts:
        if tensors[name].shape != shape:
            raise CorruptCheckpoint(
                f"{tensors[name].path}: tensor {name} has shape {list(tensors[name].shape)}, "
                f"config.json makes it {list(shape)}; they are of different models"
            )


def _names(paths: Iterable[Path]) -> str:
    names = sorted({path.name for path in paths})
    return f"{names[0]} to {names[-1]}" if len(names) > 1 else "".join(names) or "no file"


def _check_tokenizer(folder: Path) -> None:
    if not any(all((folder / name).exists() for name in names) for names in _TOKENIZERS):
        choices = ", ".join(" with ".join(names) for names in _TOKENIZERS)
        raise TokenizerMissing(f"{folder}: no tokenizer; add one of {choices}")


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    path = folder / "tokenizer_config.json"
    return path.exists() and bool(read_json(path).get("chat_template"))
