"""The network that a mock provider sits on: an `httpx.AsyncBaseTransport` that follows a script.

It imitates what a transport shows of a good or bad upstream, and nothing more: the adapter
in front of it is the real one.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio
import httpx

from adapters.providers import mock_faults
from adapters.providers.mock_answers import (
    Dialect,
    MockAnswer,
    embeddings,
    error_body,
    model_list,
    words_of,
)
from adapters.providers.mock_faults import Step
from adapters.providers.mock_options import MockOptions, draw_delay, draw_fault

_JSON = httpx.Headers({"content-type": "application/json"})
_EVENTS = httpx.Headers({"content-type": "text/event-stream; charset=utf-8"})


class ScriptedTransport(httpx.AsyncBaseTransport):
    """Answers the requests of one mock provider.

    Time passes in `anyio.sleep` alone, and not at all where nothing is to be waited for.

    Attributes:
        calls: Inference calls so far; listing models does not count.
    """

    def __init__(self, options: MockOptions, *, name: str, dialect: Dialect) -> None:
        self.calls = 0
        self._options = options
        self._name = name
        self._dialect: Dialect = dialect
        self._words: list[str] | None = None
        self._rng: random.Random | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer, or fail, as the options say.

        Raises:
            httpx.TransportError: For the faults below HTTP.
        """
        options, rng = self._options, self._chance()
        listing = request.method == "GET"
        fault = options.fault if listing else draw_fault(options, self.calls, rng)
        self.calls += not listing
        delay = draw_delay(options.latency, rng)
        if delay:
            await anyio.sleep(delay)
        if fault is not None:
            await mock_faults.raise_below_http(fault, request)
            status = mock_faults.status_of(fault)
            if status is not None:
                return self._error_answer(status, fault)
        if listing:
            return _whole(model_list(options.models, self._dialect))
        body = json.loads(request.read())
        if request.url.path.endswith("/embeddings"):
            return self._give_whole(embeddings(body, options.embedding_dimensions), fault, 0)
        if self._words is None:
            self._words = words_of(options.text, options.reply_tokens, self._name)
        is_chat = request.url.path.endswith("/chat/completions")
        answer = MockAnswer(body, self._words, dialect=self._dialect, rng=rng, is_chat=is_chat)
        if body.get("stream") is True:
            return self._give_stream(answer, fault)
        return self._give_whole(answer.whole(), fault, len(answer.words))

    def _chance(self) -> random.Random:
        if self._rng is None:
            self._rng = random.Random(f"{self._options.seed}:{self._name}")
        return self._rng

    def _give_whole(self, body: dict[str, Any], fault: str | None, tokens: int) -> httpx.Response:
        wait = draw_delay(self._options.time_to_first_token, self._chance())
        if self._options.tokens_per_second is not None:
            wait += tokens / self._options.tokens_per_second
        if fault is None:
            return _whole(body, wait)
        content_type, steps = mock_faults.spoil_whole(fault, body, self._error("broke", 500))
        return _answer(content_type, [(wait, b""), *steps] if wait else steps)

    def _give_stream(self, answer: MockAnswer, fault: str | None) -> httpx.Response:
        first = draw_delay(self._options.time_to_first_token, self._chance())
        rate = self._options.tokens_per_second
        between = 1 / rate if rate is not None else 0.0
        steps: list[Step] = [
            (first if index == 0 else between, mock_faults.event(chunk))
            for index, chunk in enumerate(answer.chunks())
        ]
        steps.append((0.0, mock_faults.DONE))
        if fault is None:
            return httpx.Response(200, headers=_EVENTS, stream=ScriptedBody(steps))
        error = self._error("broke while it streamed", 500)
        content_type, spoiled = mock_faults.spoil_stream(fault, steps, answer.whole(), error)
        return _answer(content_type, spoiled)

    def _error(self, what: str, status: int, code: str | None = None) -> dict[str, Any]:
        return error_body(status, f"the mock {what}", self._dialect, code=code)

    def _error_answer(self, status: int, fault: str) -> httpx.Response:
        headers = {"content-type": "application/json"}
        if self._options.retry_after is not None and status in mock_faults.WITH_RETRY_AFTER:
            headers["retry-after"] = str(self._options.retry_after)
        if fault == "redirect":
            headers["location"] = "http://elsewhere.invalid/v1"
        message, code = mock_faults.words_of_status(fault)
        # vLLM filters nothing; proxies that do so in front of it speak OpenAI's dialect.
        dialect: Dialect = "openai" if fault == "content_filter" else self._dialect
        raw = json.dumps(error_body(status, message, dialect, code=code)).encode()
        return httpx.Response(status, headers=headers, stream=ScriptedBody([(0.0, raw)]))


class ScriptedBody(httpx.AsyncByteStream):
    """A body in steps: wait, then deliver bytes or fail. An infinite wait is for ever."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = steps

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Go through the steps."""
        for delay, what in self._steps:
            if math.isinf(delay):
                await anyio.sleep_forever()
            if delay:
                await anyio.sleep(delay)
            if isinstance(what, Exception):
                raise what
            if what:
                yield what


def _whole(body: dict[str, Any], wait: float = 0.0) -> httpx.Response:
    raw = json.dumps(body, separators=(",", ":")).encode()
    return httpx.Response(200, headers=_JSON, stream=ScriptedBody([(wait, raw)]))


def _answer(content_type: str, steps: Iterable[Step]) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": content_type}, stream=ScriptedBody(steps))
