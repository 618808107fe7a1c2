"""The models that the front can serve: those the unit serves and whose tokenizer is loaded."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from mux_core.errors import SpecError
from mux_runtime.front import tokenizer as tokenizers
from mux_runtime.front.tokenizer import Tokenizer
from mux_runtime.generation import Generator, ServedModel
from mux_runtime.openai.errors import ApiError, model_not_found, unavailable

_log = logging.getLogger(__name__)


RETRY_S: Final = 15.0
"""A checkpoint without a tokenizer is looked at again after this, in case somebody added it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Why a tokenizer did not load, and when to try again."""

    message: str
    retry_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that can be asked now."""

    served: ServedModel
    tokenizer: Tokenizer


class Catalog:
    """Tokenizers by checkpoint folder, and the models seen so far."""

    def __init__(self, generator: Generator, *,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self._generator = generator
        self._clock = clock
        self._tokenizers: dict[str, Tokenizer] = {}
        self._failures: dict[str, _Failure] = {}
        self._seen: dict[str, ServedModel] = {}
        self._loading = asyncio.Lock()

    def ready(self) -> tuple[LoadedModel, ...]:
        """Models that can be asked now, by served name."""
        return tuple(
            LoadedModel(served=model, tokenizer=self._tokenizers[model.path])
            for model in self._generator.models()
            if model.path in self._tokenizers
        )

    def failures(self) -> Mapping[str, str]:
        """Why a served model has no tokenizer, by model name."""
        return {model: failure.message for model, failure in self._failures.items()}

    def known(self, served_name: str) -> ServedModel | None:
        """The model of that name, also while it cannot serve."""
        # A live model wins over one that was served under the same name before.
        for model in (*self._generator.models(), *self._seen.values()):
            if model.served_name == served_name:
                return model
        return None

    def find(self, served_name: str, *, only: str | None = None) -> LoadedModel:
        """The model to ask. Raises ApiError: 404 unknown, 503 not now.

        `only`: the one model (by object name) that may be found.
        """
        for model in self._offered(only):
            if model.served.served_name == served_name:
                return model
        known = self.known(served_name)
        if known is None or only not in (None, known.model):
            raise self.not_found(served_name, only=only)
        why = self.failures().get(known.model, "its engine is starting, draining or restarting")
        raise unavailable(f"model {served_name!r}: cannot serve now ({why}); retry shortly",
                          code="model_not_ready")  # fmt: skip

    def not_found(self, served_name: str, *, only: str | None = None) -> ApiError:
        """404, with the names that may be asked for."""
        return model_not_found(
            served_name, tuple(model.served.served_name for model in self._offered(only))
        )

    def _offered(self, only: str | None) -> tuple[LoadedModel, ...]:
        return tuple(model for model in self.ready() if only in (None, model.served.model))

    async def refresh(self, members: Collection[str]) -> tuple[ServedModel, ...]:
        """Loads missing tokenizers and forgets models that left; returns those that left.

        `members` are models that the unit still has, serving or not.
        """
        async with self._loading:
            live = self._generator.models()
            self._seen.update({model.model: model for model in live})
            await asyncio.gather(*(self._load(model) for model in _by_path(live)))
            return self._forget(live, members)

    async def _load(self, model: ServedModel) -> None:
        failure = self._failures.get(model.model)
        if model.path in self._tokenizers or (failure and failure.retry_at > self._clock()):
            return
        try:
            self._tokenizers[model.path] = await tokenizers.load(model.path)
            self._failures.pop(model.model, None)
        except SpecError as error:
            if failure is None:
                _log.error("model %s: %s", model.model, error)
            self._failures[model.model] = _Failure(
                message=str(error), retry_at=self._clock() + RETRY_S)  # fmt: skip

    def _forget(
        self, live: tuple[ServedModel, ...], members: Collection[str]
    ) -> tuple[ServedModel, ...]:
        kept = {model.model for model in live} | set(members)
        gone = tuple(model for model in self._seen.values() if model.model not in kept)
        for model in gone:
            del self._seen[model.model]
            self._failures.pop(model.model, None)
        paths = {model.path for model in self._seen.values()}
        self._tokenizers = {p: t for p, t in self._tokenizers.items() if p in paths}
        return gone


def _by_path(models: tuple[ServedModel, ...]) -> list[ServedModel]:
    """One model per checkpoint folder."""
    return list({model.path: model for model in reversed(models)}.values())
