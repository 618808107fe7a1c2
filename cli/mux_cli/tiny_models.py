"""Tiny checkpoints with random weights and tokenizers of their own, for demos and tests.

Real files in the Hugging Face layout, so that everything that reads a checkpoint reads these too.
torch and transformers are imported when a model is written, not before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mux_core.errors import SpecError

VOCAB: Final = 2048
MAX_MODEL_LEN: Final = 2048
INITIALIZER_RANGE: Final = 0.25
"""transformers' 0.02 makes a tiny model repeat one token for ever; with this it wanders."""

EOS: Final = "<|end|>"
BOS: Final = "<|begin|>"
PAD: Final = "<|pad|>"
ROLE: Final = "<|role|>"
QWEN_UNKNOWN: Final = "<|endoftext|>"
"""transformers adds it to every Qwen2 tokenizer; named here, it gets an id of the vocabulary."""
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|role|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|role|>assistant\n{% endif %}"
)
TEXT: Final[Sequence[str]] = (
    "A small cluster serves many language models, and most of them sleep most of the day.",
    "The scheduler grants a step, the engine runs it, and the answer travels back token by token.",
    "Two models share one memory: what the first gives back at noon the second takes at night.",
    "Prefill reads the whole prompt at once; decode writes one word after another.",
    "She counted the blocks, wrote the number down, and counted them again: none was missing.",
    "Keys and values lie in rows, rows lie in extents, and extents lie side by side.",
    "Übung macht den Meister; l'été dernier, nous étions à la mer; 猫は静かに眠る。",
    "def answer(question):\n    return sorted(question.split(), key=len)[0]\n",
    '{"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}',
    "0 1 2 3 4 5 6 7 8 9 10 100 1000 3.14 2.718 -1 50% $5 #7 a@b.c https://example.org/x?y=z",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """What to write. The same value gives the same weights and the same tokenizer.

    `extra` is passed to the architecture's config as it is, e.g. `rope_parameters`.
    """

    family: str
    layers: int = 2
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 512
    tied: bool = False
    chat_template: bool = True
    vocab: int = VOCAB
    max_model_len: int = MAX_MODEL_LEN
    dtype: str = "float32"
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


DEMO: Final[Mapping[str, TinyModel]] = {
    "tiny-llama": TinyModel(family="llama", layers=4, heads=8, kv_heads=2, head_dim=32, seed=1),
    "tiny-qwen2": TinyModel(family="qwen2", layers=2, kv_heads=4, tied=True, seed=2),
    "tiny-qwen3": TinyModel(family="qwen3", layers=3, hidden=128, heads=4, kv_heads=1, seed=3),
}
"""Three architectures of different depth, width and number of KV heads."""

_CLASSES: Final[Mapping[str, str]] = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3",
}  # fmt: skip


def write(model: TinyModel, folder: Path) -> Path:
    """Writes config, weights (safetensors) and tokenizer into `folder`, which it makes."""
    if model.family not in _CLASSES:
        raise SpecError(f"tiny model: family {model.family!r}; use one of {', '.join(_CLASSES)}")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(model)
    tokenizer.save_pretrained(folder)
    _weights(model, tokenizer).save_pretrained(folder)
    return folder


def write_demo(folder: Path) -> dict[str, Path]:
    """The demo's models below `folder`, by name; those already there are kept."""
    return {
        name: folder / name
        if (folder / name / "model.safetensors").exists()
        else write(model, folder / name)
        for name, model in DEMO.items()
    }


def _weights(model: TinyModel, tokenizer: Any) -> Any:
    """A transformers model with seeded random weights."""
    import torch
    import transformers

    logs: Any = transformers.utils.logging
    logs.disable_progress_bar()
    name = _CLASSES[model.family]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=model.vocab, hidden_size=model.hidden, intermediate_size=model.intermediate,
        num_hidden_layers=model.layers, num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads, head_dim=model.head_dim,
        max_position_embeddings=model.max_model_len, tie_word_embeddings=model.tied,
        initializer_range=INITIALIZER_RANGE, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **{**({"sliding_window": None} if model.family == "mistral" else {}), **model.extra},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.seed)
        built = getattr(transformers, f"{name}ForCausalLM")(config)
        _roughen(built)
    return built.to(getattr(torch, model.dtype))


def _roughen(built: Any) -> None:
    """Norm weights and biases start as ones and zeros, which would hide that they are applied."""
    import torch

    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1)


def _tokenizer(model: TinyModel) -> Any:
    """A byte-level BPE trained on `TEXT`; knows every byte, so every text has ids."""
    import tokenizers
    import transformers

    fast: Any = transformers.PreTrainedTokenizerFast
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=model.vocab, show_progress=False,
        special_tokens=[PAD, BOS, EOS, ROLE, QWEN_UNKNOWN],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    raw.train_from_iterator(TEXT, trainer)
    # The text is too short to fill the vocabulary; named tokens do, so that every id decodes.
    raw.add_tokens([f" tok{index}" for index in range(model.vocab - raw.get_vocab_size())])
    tokenizer = fast(
        tokenizer_object=raw, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        model_max_length=model.max_model_len, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    if model.chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
