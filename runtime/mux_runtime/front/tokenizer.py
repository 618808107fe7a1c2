"""The one door to transformers: a model's tokenizer and chat template.

transformers takes seconds to import, so it is imported when the first model is loaded, off the
event loop. Encoding runs in threads too; decoding a few tokens takes microseconds and does not.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from mux_core.errors import SpecError
from mux_runtime.openai.errors import invalid
from mux_runtime.openai.requests import Message

T = TypeVar("T")
_THREADS: Final = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")
_IMPORTING: Final = threading.Lock()


class Tokenizer:
    """Text to tokens and back, for one model; safe to use from several tasks."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._fast: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            # Encoding would otherwise change these settings while another task decodes.
            self._fast.no_truncation()
            self._fast.no_padding()
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special = frozenset(
            [token for token, entry in added.items() if entry.special]
        ) | frozenset(tokenizer.all_special_ids)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    async def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a prompt, with the special tokens that the model expects."""
        return await _in_thread(self._encode, text, True)

    async def encode_chat(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """The tokens of a conversation. Raises ApiError when the template refuses it."""
        return await _in_thread(self._encode_chat, messages)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        if self._fast is not None:
            return str(self._fast.decode(list(ids), skip_special_tokens=True))
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True,
                                          clean_up_tokenization_spaces=False))  # fmt: skip

    def piece(self, token: int) -> str:
        """One token as shown among log probabilities, special tokens included."""
        if self._fast is not None:
            return str(self._fast.decode([token], skip_special_tokens=False))
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def _encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        with self._lock:
            return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def _encode_chat(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        return self._encode(self._render(messages), False)

    def _render(self, messages: tuple[Message, ...]) -> str:
        from jinja2 import TemplateError

        turns = [{"role": message.role, "content": message.content,
                  **({"name": message.name} if message.name else {})}
                 for message in messages]  # fmt: skip
        try:
            return str(self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            ))  # fmt: skip
        except TemplateError as error:
            raise invalid(f"messages: the model's chat template refuses them ({error}); change "
                          "them, or use /v1/completions", param="messages",
                          code="chat_template_error") from error  # fmt: skip


async def load(path: str) -> Tokenizer:
    """The tokenizer of the checkpoint folder `path`. Raises SpecError when it has none."""
    return await _in_thread(_load, path)


def warm_up() -> None:
    """Begins to import transformers, so that the first model need not wait for it."""
    _THREADS.submit(_auto_tokenizer)


def _auto_tokenizer() -> Any:
    with _IMPORTING:
        from transformers import AutoTokenizer

    return AutoTokenizer


def _load(path: str) -> Tokenizer:
    try:
        return Tokenizer(_auto_tokenizer().from_pretrained(path, local_files_only=True))
    except Exception as error:  # transformers raises whatever its parsers raise
        raise SpecError(f"checkpoint {path}: no usable tokenizer ({type(error).__name__}: "
                        f"{error}); add its tokenizer.json") from error  # fmt: skip


async def _in_thread(function: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, function, *arguments)
