"""The endpoints that ask a model: one class, and one row of a table for each operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.types import Message

from adapters.frontdoor.call_settings import CallSettings, call_settings
from adapters.frontdoor.openai_dialect import OPENAI, Dialect
from adapters.json_body import parse_request_body
from engine.errors import DeadlineExceededError, InvalidRequestError, StreamTruncatedError
from engine.operations import ChatRequest, CompletionRequest, EmbeddingRequest, Request

if TYPE_CHECKING:
    from adapters.frontdoor.served_request import FrontDesk, ServedRequest
    from engine.answer_stream import AnswerStream


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRow:
    """One operation that can be asked for over HTTP.

    Attributes:
        path: Where it is asked for, with POST.
        request_type: Reads its body.
        dialect: The wire shape of its answers and errors.
        streams: Whether it knows `stream: true`.
    """

    path: str
    request_type: type[Request]
    dialect: Dialect
    streams: bool


OPERATIONS: Final = (
    OperationRow(
        path="/v1/chat/completions", request_type=ChatRequest, dialect=OPENAI, streams=True
    ),
    OperationRow(
        path="/v1/completions", request_type=CompletionRequest, dialect=OPENAI, streams=True
    ),
    OperationRow(
        path="/v1/embeddings", request_type=EmbeddingRequest, dialect=OPENAI, streams=False
    ),
)
"""A further operation is a row here, and a dialect if its clients expect another shape."""


class OperationEndpoint:
    """Takes a JSON body, asks the engine, and answers whole or as a stream.

    Args:
        desk: What all requests share.
        row: The operation.
    """

    __slots__ = ("_desk", "_row")

    def __init__(self, desk: FrontDesk, row: OperationRow) -> None:
        self._desk = desk
        self._row = row

    async def __call__(self, request: ServedRequest) -> None:
        """Serve one request.

        Raises:
            GatewayError: If nobody could serve it; nothing has been sent then.
            ExchangeError: If its body was too large or too slow, or the client left.
        """
        settings = call_settings(request.scope, request.headers)
        exchange = request.exchange
        raw = await exchange.body()
        asked = self._row.request_type.from_body(parse_request_body(raw), raw)
        request.model, request.streamed = asked.model, asked.streamed
        limit = settings.timeout
        if limit is not None:
            # The caller counts from when it sent the request, not from when we had read it.
            limit -= request.elapsed
            if limit <= 0:
                msg = "the request's time was over before its body was here"
                raise DeadlineExceededError(msg)
        if asked.streamed:
            if not self._row.streams:
                msg = f"{self._row.path} does not stream: leave 'stream' out"
                raise InvalidRequestError(msg, param="stream", code="unsupported_value")
            await exchange.run(lambda: self._stream(request, asked, limit, settings))
            return
        response = await exchange.run(
            lambda: self._desk.router.complete(
                asked,
                timeout=limit,
                request_id=request.id,
                context=request.context,
                priority=settings.priority,
                idempotency_key=settings.idempotency_key,
                idempotency_scope=settings.idempotency_scope,
            )
        )
        await request.answer_with(response)

    async def _stream(
        self, request: ServedRequest, asked: Request, limit: float | None, settings: CallSettings
    ) -> None:
        """Send a stream. The status waits for the first useful event: until then it may fail."""
        opening = self._desk.router.stream(
            asked,
            timeout=limit,
            request_id=request.id,
            context=request.context,
            priority=settings.priority,
            idempotency_key=settings.idempotency_key,
            idempotency_scope=settings.idempotency_scope,
        )
        async with opening as stream:
            await request.start_stream(stream)
            with self._desk.draining.ends(_CutByDrain(stream)):
                error = await self._send_events(request, stream)
            await request.end_stream(error)

    async def _send_events(
        self, request: ServedRequest, stream: AnswerStream
    ) -> StreamTruncatedError | None:
        """Send each chunk when it comes, no faster than the client reads.

        What came in one read from the provider goes out in one write to the client.
        """
        event, send = self._row.dialect.event, request.send
        try:
            async for chunk in stream:
                more = stream.ready()
                body = b"".join([event(chunk), *map(event, more)]) if more else event(chunk)
                message: Message = {"type": "http.response.body", "body": body, "more_body": True}
                await send(message)
        except StreamTruncatedError as error:
            return error
        return None


class _CutByDrain:
    """Ends a stream with an error event when the time for draining is over."""

    __slots__ = ("_stream",)

    def __init__(self, stream: AnswerStream) -> None:
        self._stream = stream

    def cancel(self) -> None:
        """Cut the stream, also under a reader that waits."""
        self._stream.cut("the gateway is shutting down")
