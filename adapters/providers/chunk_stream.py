"""A streamed answer of the OpenAI kind, as the engine reads it.

Up to the first useful output every event is parsed, because until then another provider
may be asked. After it events pass unparsed but for a few searches for byte strings.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Self

import anyio

from adapters.json_body import parse_answer_body
from adapters.providers.answer_reader import AnswerReader
from adapters.providers.error_mapping import Reporter, error_object_failure
from adapters.providers.sse import MAX_EVENT_BYTES, Event, SSEParser
from engine.errors import ProviderError
from engine.operations import Chunk

MAX_STREAM_BYTES: Final = 536_870_912
"""The most that one stream may deliver, bytes: 512 MiB. Endless streams end here."""

_DONE: Final = b"[DONE]"
# How long, and how far, to read after the end marker for the end of the body, so that the
# connection can be used again. The openai client waits as long.
_DRAIN_SECONDS: Final = 0.1
_DRAIN_BYTES: Final = 65_536

_BRACE_OPEN, _BRACE_CLOSE = b"{}"
# Inside of a JSON text these quotes would be escaped, so both match keys and values only.
_FINISH_REASON = re.compile(rb'"finish_reason"\s*:\s*"')
_ERROR_KEY: Final = b'"error"'


class ChunkStream:
    """Reads one streamed answer; a `ChunkSource`.

    It ends cleanly only after `[DONE]`, or when the body ended after each choice had told
    its finish reason (some servers send no `[DONE]`).
    """

    __slots__ = (
        "_choices", "_committed", "_ended", "_events", "_failure", "_finished", "_next",
        "_open", "_parser", "_reader", "_reporter", "_size",
    )  # fmt: skip

    def __init__(
        self,
        open_answer: Callable[[], Awaitable[AnswerReader]],
        reporter: Reporter,
        *,
        choices: int = 1,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        """Prepare; nothing is sent before the first read.

        Args:
            open_answer: Sends the request and returns the answer, found to be a stream.
            reporter: Whose attempt it is.
            choices: How many choices the answer must finish.
            max_event_bytes: The largest event that is accepted, bytes.
        """
        self._open = open_answer
        self._reporter = reporter
        self._choices = choices
        self._parser = SSEParser(max_event_bytes=max_event_bytes)
        self._reader: AnswerReader | None = None
        self._events: list[Event] = []
        self._next = 0
        self._size = 0
        self._finished: set[int] = set()
        self._committed = False
        self._ended = False
        self._failure: ProviderError | None = None

    def __aiter__(self) -> Self:
        """Return the stream itself."""
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk.

        Raises:
            ProviderError: If the answer is an error, broken, or cut; again at each call.
            StopAsyncIteration: If the provider said that the answer is complete.
        """
        if self._failure is not None:
            raise self._failure
        try:
            while True:
                while self._next < len(self._events):
                    event = self._events[self._next]
                    self._next += 1
                    chunk = self._take(event)
                    if chunk is not None:
                        return chunk
                    if self._ended:
                        break
                if self._ended:
                    raise StopAsyncIteration
                await self._read()
        except ProviderError as failure:
            self._failure = failure
            raise

    async def aclose(self) -> None:
        """Release the connection after a complete answer, cut it otherwise."""
        reader, self._reader = self._reader, None
        if self._failure is None and not self._ended:
            self._failure = self._reporter.broken("is not read any more: the stream was closed")
        if reader is None:
            return
        try:
            if self._ended and not reader.complete:
                await _drain(reader)
        finally:
            await reader.aclose()

    async def _read(self) -> None:
        if self._parser.overflowed:
            raise self._reporter.broken("sent an event that is too large")
        if self._reader is None:
            self._reader = await self._open()
        part = await self._reader.read()
        if part is None:
            self._end_of_body()
            return
        self._size += len(part)
        if self._size > MAX_STREAM_BYTES:
            raise self._reporter.broken(f"sent more than {MAX_STREAM_BYTES} bytes in one stream")
        self._events = self._parser.feed(part)
        self._next = 0

    def _end_of_body(self) -> None:
        cut = self._parser.is_inside_event
        if cut:
            # An end marker is complete without its blank line. Nothing else is.
            cut = self._parser.feed(b"\n\n") != [(None, _DONE)]
        if cut or len(self._finished) < self._choices:
            what = "cut its stream off" if self._committed else "ended its stream without output"
            raise self._reporter.broken(what)
        self._ended = True

    def _take(self, event: Event) -> Chunk | None:
        """Turn an event into a chunk; None for the end marker and for empty events."""
        name, data = event
        if data.startswith(_DONE):
            if not self._committed:
                raise self._reporter.broken("ended its stream without output")
            self._ended = True
            return None
        if name == "error":
            raise self._error_event(data)
        if not data:
            return None
        if not self._committed:
            return self._judge(data)
        if data[0] != _BRACE_OPEN or data[-1] != _BRACE_CLOSE:
            raise self._reporter.broken("sent an event that is no JSON object")
        if _ERROR_KEY in data or _FINISH_REASON.search(data):
            return Chunk(data, body=self._inspect(data))
        if not data.isascii():
            self._check_utf8(data)
        return Chunk(data)

    def _judge(self, data: bytes) -> Chunk:
        """Parse an event and find whether it carries the first useful output."""
        body = self._inspect(data)
        commits = any(_is_output(choice) for choice in _choices_of(body))
        self._committed = commits
        return Chunk(data, body=body, commits=commits)

    def _inspect(self, data: bytes) -> dict[str, Any]:
        """Parse an event, raise the error it may hold, note the choices it finishes."""
        try:
            body = parse_answer_body(data)
        except ValueError as error:
            what = f"sent an event that is wrong: {error}"
            failure = self._reporter.broken(what)
            raise failure from None
        if body.get("error"):
            raise error_object_failure(body["error"], self._reporter)
        for choice in _choices_of(body):
            index = choice.get("index", 0)
            if choice.get("finish_reason") and type(index) is int and 0 <= index < self._choices:
                self._finished.add(index)
        return body

    def _error_event(self, data: bytes) -> ProviderError:
        try:
            body = parse_answer_body(data)
        except ValueError:
            return error_object_failure(data.decode("utf-8", "replace"), self._reporter)
        return error_object_failure(body.get("error") or body, self._reporter)

    def _check_utf8(self, data: bytes) -> None:
        try:
            data.decode()
        except UnicodeDecodeError:
            failure = self._reporter.broken("sent an event that is not UTF-8")
        else:
            return
        # Outside of the handler: what was caught holds the event.
        raise failure


def _choices_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = body.get("choices")
    if not isinstance(choices, list):
        return []
    return [choice for choice in choices if isinstance(choice, dict)]


def _is_output(choice: Mapping[str, Any]) -> bool:
    if choice.get("finish_reason") or choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role")


async def _drain(reader: AnswerReader) -> None:
    size = 0
    with anyio.move_on_after(_DRAIN_SECONDS):
        try:
            while size <= _DRAIN_BYTES and (part := await reader.read()) is not None:
                size += len(part)
        except ProviderError:
            # The answer is complete; only the connection is lost, and it is cut anyway.
            return
