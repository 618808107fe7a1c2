"""One HTTP request through the generator: parse, tokenise, submit, write the answer.

The generator's iterator is closed on every way out, so a client that goes away frees its KV rows
at the model's next step.
"""

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from mux_core.engine import Output
from mux_core.errors import PeerError
from mux_runtime.front.answers import Answer, ChatAnswer, CompletionAnswer, Heading
from mux_runtime.front.catalog import Catalog, LoadedModel
from mux_runtime.front.limits import check_token_ids, settled_max_tokens
from mux_runtime.front.meter import Clock, Meter
from mux_runtime.front.metrics import Finished, FrontMetrics
from mux_runtime.front.textstream import Delta, TextStream
from mux_runtime.generation import GenerationRequest, Generator
from mux_runtime.openai import errors, requests
from mux_runtime.openai.answering import api_error
from mux_runtime.openai.errors import ApiError
from mux_runtime.openai.fields import Body, decode_object
from mux_runtime.openai.hop import EventReport, headers_of
from mux_runtime.openai.responses import event, usage
from mux_runtime.openai.streams import Streams

SSE_HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8",
                      "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A port: `only` is the one model it serves; behind the gateway nothing is counted."""

    counts: bool
    only: str | None = None


@dataclass(slots=True, kw_only=True)
class Job:
    """One request, ready to run."""

    request: GenerationRequest
    answer: Answer
    text: TextStream
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request's tokens, whichever endpoint it came by."""

    tokens: tuple[int, ...]
    options: requests.Options
    param: str
    id_prefix: str
    answer: Callable[[Heading], Answer]


class Service:
    """Both endpoints over one generator. `draw` gives seeds, `new_id` request ids."""

    def __init__(self, generator: Generator, catalog: Catalog, metrics: FrontMetrics, *,
                 clock: Clock = time.monotonic,
                 draw: Callable[[], int] = lambda: random.getrandbits(62),
                 new_id: Callable[[], str] = lambda: uuid.uuid4().hex) -> None:  # fmt: skip
        self._generator = generator
        self._catalog = catalog
        self._metrics = metrics
        self._clock = clock
        self._draw = draw
        self._new_id = new_id
        self.streams = Streams()

    async def completions(self, http: web.Request, door: Door) -> web.StreamResponse:
        return await self._serve(http, door, self._completion_prompt)

    async def chat(self, http: web.Request, door: Door) -> web.StreamResponse:
        return await self._serve(http, door, self._chat_prompt)

    async def _serve(self, http: web.Request, door: Door, prompt_of: "PromptOf",
                     ) -> web.StreamResponse:  # fmt: skip
        arrival = self._clock()
        body = decode_object(await http.read())
        name = requests.model_of(body)
        meter = self._arrived(name, door, arrival)
        try:
            model = self._catalog.find(name, only=door.only)
        except ApiError as error:
            raise self._counted(error, meter) from None
        job = self._job(model, await prompt_of(body, model))
        async with contextlib.aclosing(self._deltas(job, meter)) as deltas:
            if job.stream:
                return await self._stream(http, job, deltas, meter, door)
            return await self._whole(job, deltas, meter, door)

    def _arrived(self, name: str, door: Door, arrival: float) -> Meter:
        """Counts the arrival, whatever becomes of it. Raises ApiError for an unknown name."""
        known = self._catalog.known(name)
        if known is None or door.only not in (None, known.model):
            raise self._catalog.not_found(name, only=door.only)
        if door.counts:
            self._generator.count_arrival(known.model)
            self._metrics.first_hop.arrived(known.model, known.served_name)
        return Meter(self._metrics, known, clock=self._clock, arrival=arrival,
                     first_hop=door.counts)  # fmt: skip

    async def _completion_prompt(self, body: Body, model: LoadedModel) -> Prompt:
        request = requests.completion_request(body)
        tokens = request.prompt
        if isinstance(tokens, str):
            tokens = await model.tokenizer.encode(tokens)
        return Prompt(tokens=tokens, options=request.options, param="prompt", id_prefix="cmpl-",
                      answer=CompletionAnswer)  # fmt: skip

    async def _chat_prompt(self, body: Body, model: LoadedModel) -> Prompt:
        request = requests.chat_request(body)
        if not model.tokenizer.has_chat_template:
            raise errors.invalid(
                f"model {request.model!r}: has no chat template; use /v1/completions, or add "
                "chat_template to the checkpoint's tokenizer_config.json",
                param="model", code="no_chat_template")  # fmt: skip
        tokens = await model.tokenizer.encode_chat(request.messages)
        return Prompt(tokens=tokens, options=request.options, param="messages",
                      id_prefix="chatcmpl-", answer=ChatAnswer)  # fmt: skip

    def _job(self, model: LoadedModel, prompt: Prompt) -> Job:
        options, served = prompt.options, model.served
        check_token_ids(served, prompt.tokens, prompt.param)
        check_token_ids(served, options.stop_token_ids, "stop_token_ids")
        limit = settled_max_tokens(served, len(prompt.tokens), options, param=prompt.param)
        rid = prompt.id_prefix + self._new_id()
        heading = Heading(id=rid, created=int(time.time()), model=served.served_name,
                          prompt=prompt.tokens, options=options,
                          tokenizer=model.tokenizer)  # fmt: skip
        seed = self._draw() if options.seed is None else options.seed
        return Job(
            request=GenerationRequest(rid=rid, model=served.model, prompt=prompt.tokens,
                                      sampling=options.sampling(max_tokens=limit, seed=seed)),
            answer=prompt.answer(heading),
            text=TextStream(model.tokenizer, options),
            stream=options.stream,
        )  # fmt: skip

    async def _deltas(self, job: Job, meter: Meter) -> AsyncGenerator[Delta, None]:
        """What the generator's outputs add; ends after the delta with `finish`."""
        try:
            async with _closing(self._generator.submit(job.request)) as outputs:
                async for output in outputs:
                    delta = job.text.push(output)
                    meter.step(len(delta.tokens), prompt_tokens=len(job.request.prompt))
                    if delta.finish is not None:
                        meter.end(Finished(delta.finish))
                    yield delta
                    if delta.finish is not None:
                        return
            raise PeerError(f"request {job.request.rid}: ended without its last token; retry it")
        except Exception as error:
            raise self._counted(error, meter) from error
        finally:
            meter.end(Finished.ABORT)  # no effect unless the client went away

    def _counted(self, error: Exception, meter: Meter) -> ApiError:
        answer = api_error(error)
        # The client's own mistakes say nothing about our service.
        if answer.status >= 500 or answer.status == 429:
            meter.end(Finished.ERROR)
        return answer

    async def _whole(self, job: Job, deltas: AsyncIterator[Delta], meter: Meter,
                     door: Door) -> web.Response:  # fmt: skip
        collected = [delta async for delta in deltas]
        counts = usage(len(job.request.prompt), job.text.token_count)
        headers = {} if door.counts else headers_of(ttft_s=meter.ttft_s, tokens=meter.tokens)
        return web.Response(body=job.answer.whole(collected, counts), headers=headers,
                            content_type="application/json")  # fmt: skip

    async def _stream(self, http: web.Request, job: Job, deltas: AsyncIterator[Delta],
                      meter: Meter, door: Door) -> web.StreamResponse:  # fmt: skip
        # Refusals come before the first output, so they can still be a proper HTTP status.
        first = await anext(deltas)
        response = web.StreamResponse(headers=SSE_HEADERS)
        with contextlib.suppress(ConnectionResetError):  # the client went away: nothing to tell
            await response.prepare(http)
            await response.write(job.answer.opening() + job.answer.chunk(first))
            try:
                await self._write(response, job, deltas)
            except ApiError as error:
                await response.write(event(error.body()))
            else:
                await response.write(self._closing_events(job, meter, door))
            await response.write_eof()
        return response

    async def _write(self, response: web.StreamResponse, job: Job,
                     deltas: AsyncIterator[Delta]) -> None:  # fmt: skip
        """The deltas after the first. Raises ApiError when the request or this front ends."""
        try:
            with self.streams.running():
                async for delta in deltas:
                    if chunk := job.answer.chunk(delta):
                        await response.write(chunk)
        except asyncio.CancelledError:
            if not self.streams.cutting:
                raise
            raise errors.unavailable("stream cut: its unit ends; send the request again",
                                     code="stream_cut") from None  # fmt: skip

    def _closing_events(self, job: Job, meter: Meter, door: Door) -> bytes:
        counts = usage(len(job.request.prompt), job.text.token_count)
        report = b"" if door.counts else EventReport(tokens=meter.tokens).encoded()
        return report + job.answer.closing(counts)


PromptOf = Callable[[Body, LoadedModel], Awaitable[Prompt]]


@contextlib.asynccontextmanager
async def _closing(outputs: AsyncIterator[Output]) -> AsyncIterator[AsyncIterator[Output]]:
    try:
        yield outputs
    finally:
        close = getattr(outputs, "aclose", None)
        if close is not None:
            await close()
