"""What transformers itself says: greedy tokens of a checkpoint, one prompt at a time."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any


def greedy_tokens(path: Path, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The tokens after `prompt`, the end of text included where it comes."""
    import torch

    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        out = _model(path).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@cache
def _model(path: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
