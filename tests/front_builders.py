"""Tokenizers small enough to train in a test, and a generator that follows a script."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mux_core.engine import Finish, Output, TokenLogprob
from mux_runtime.generation import GenerationRequest, ModelNotServing, QueueFull, ServedModel

CORPUS = (
    "the quick brown fox jumps over the lazy dog and the slow green turtle",
    "naïve café, 東京 and Москва; emojis: 🚀🐱 family 👨‍👩‍👧 done",
    "stop strings may cross token boundaries; STOP and ENDING are such strings",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'developer' %}{{ raise_exception('no developer') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<|end|>", "<|begin|>", "<|extra|>")


@cache
def byte_level() -> Any:
    """Byte-level BPE, as Llama 3 and Qwen have: every token is some bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIALS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))  # fmt: skip
    return tokenizer


class ByteLevelDecoder:
    """The text of `byte_level` tokens, without transformers."""

    special = frozenset(range(len(SPECIALS)))

    def decode(self, ids: Sequence[int]) -> str:
        return str(byte_level().decode(list(ids), skip_special_tokens=True))


@cache
def byte_fallback() -> Any:
    """Sentencepiece's way, as Llama 2 and Mistral have: words with a leading mark, else bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIALS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁"]
    pieces += ["a", "b", "é", "▁the", "▁fox", "▁dog", ".", ",", "▁S", "ST", "OP"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True,
                                     fuse_unk=True))  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def write_tokenizer(folder: Path, *, kind: Any = byte_level, template: str | None = CHAT_TEMPLATE
                    ) -> Path:  # fmt: skip
    """A checkpoint folder that holds nothing but a tokenizer."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=kind(), eos_token=SPECIALS[0], bos_token=SPECIALS[1],
        additional_special_tokens=[SPECIALS[2]], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def served(name: str, folder: Path, **changes: Any) -> ServedModel:
    """A served model whose object name differs from its served name."""
    values: dict[str, Any] = {
        "model": f"{name}-llm", "served_name": name, "path": str(folder), "port": 0,
        "max_model_len": 128, "kv_limit_tokens": 1 << 20, "vocab": byte_level().get_vocab_size(),
        "eos_token_ids": (0,),
    }  # fmt: skip
    return ServedModel(**{**values, **changes})


def outputs(tokens: Sequence[int], *, rid: str = "r", finish: Finish = Finish.LENGTH,
            group: int = 1, logprobs: int | None = None) -> list[Output]:  # fmt: skip
    """`tokens` as steps of `group` tokens; the last one carries `finish`."""
    groups = [tuple(tokens[at : at + group]) for at in range(0, len(tokens), group)]
    return [
        Output(rid=rid, tokens=part, finish=finish if index == len(groups) - 1 else None,
               logprobs=() if logprobs is None else tuple(_logprob(t, logprobs) for t in part))
        for index, part in enumerate(groups)
    ]  # fmt: skip


def _logprob(token: int, top: int) -> TokenLogprob:
    return TokenLogprob(token=token, logprob=-0.5,
                        top=tuple((token + i, -0.5 - i) for i in range(top)))  # fmt: skip


Script = Callable[[GenerationRequest], Sequence[Output | Exception]]


def echo(request: GenerationRequest) -> list[Output]:
    """Says the prompt again, as far as max_tokens allows, then stops."""
    tokens = request.prompt[: request.sampling.max_tokens]
    cut = len(tokens) < len(request.prompt) or len(tokens) == request.sampling.max_tokens
    if not cut:
        tokens = (*tokens, 0)
    return outputs(tokens, rid=request.rid, finish=Finish.LENGTH if cut else Finish.STOP,
                   logprobs=request.sampling.logprobs)  # fmt: skip


@dataclass
class ScriptedGenerator:
    """A generator whose outputs are scripted; remembers what it was asked and what was closed.

    `pace`: one permit per output, so that a test decides how far a request gets.
    """

    served: list[ServedModel] = field(default_factory=list)
    script: Script = echo
    pace: asyncio.Semaphore | None = None
    max_queue: int | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    arrivals: Counter[str] = field(default_factory=Counter)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def models(self) -> tuple[ServedModel, ...]:
        return tuple(sorted(self.served, key=lambda model: model.served_name))

    def count_arrival(self, model: str) -> None:
        self.arrivals[model] += 1

    def submit(self, request: GenerationRequest) -> AsyncIterator[Output]:
        self.requests.append(request)
        self.notify()
        if request.model not in {model.model for model in self.served}:
            raise ModelNotServing(f"model {request.model}: draining", reason="Draining")
        if self.max_queue is not None and len(self.running) >= self.max_queue:
            raise QueueFull(f"model {request.model}: queue of {self.max_queue} is full; retry",
                            reason="QueueFull")  # fmt: skip
        self.running.add(request.rid)
        return ScriptedStream(self, request)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits, without polling, until what was asked or closed makes `condition` true."""
        async with asyncio.timeout(30):
            while not condition():
                await self.changed.wait()


class ScriptedStream(AsyncIterator[Output]):
    """One request's outputs. Only closing it aborts the request: nothing does so by itself."""

    def __init__(self, generator: ScriptedGenerator, request: GenerationRequest) -> None:
        self._generator = generator
        self._rid = request.rid
        self._steps = iter(generator.script(request))

    async def __anext__(self) -> Output:
        await asyncio.sleep(0)
        if self._generator.pace is not None:
            await self._generator.pace.acquire()
        try:
            step = next(self._steps)
        except StopIteration:
            raise StopAsyncIteration from None
        if isinstance(step, Exception):
            self._generator.running.discard(self._rid)
            raise step
        if step.finish is not None:
            self._generator.running.discard(self._rid)
        return step

    async def aclose(self) -> None:
        if self._rid in self._generator.running:
            self._generator.running.discard(self._rid)
            self._generator.aborted.append(self._rid)
        self._generator.notify()
