"""`RouterRequests`: the ways in which a router is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from engine.answer_stream import AnswerStream
from engine.operations import ChatRequest, EmbeddingRequest, Request, Response
from engine.priority import Priority
from engine.request_run import RequestRun
from engine.stream_opening import StreamOpening

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from engine.idempotency_store import IdempotencyStore

    Accept = Callable[
        [Request, bool, float | None, str | None, Context | None, Priority], RequestRun
    ]


class RouterRequests(ABC):
    """Whole answers, streams and embeddings, all by the same way in."""

    _accept: Accept

    @abstractmethod
    def _idempotency(self) -> IdempotencyStore:
        """What is kept of requests with an idempotency key.

        Raises:
            RouterClosedError: If the router was not entered, or is closing.
        """

    @abstractmethod
    def _until(self, timeout: float | None) -> float | None:
        """The instant at which that many seconds are over."""

    async def complete(
        self,
        request: Request | Mapping[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the request's deadline
        request_id: str | None = None,
        context: Context | None = None,
        priority: Priority = Priority.CRITICAL,
        idempotency_key: str | None = None,
        idempotency_scope: str = "",
    ) -> Response:
        """Get a whole answer.

        Args:
            request: A request, or the JSON object of a chat completion.
            timeout: Seconds within which to be answered; never extends the configured total.
            request_id: The request's id; None makes one.
            context: Trace context of the caller; None takes the current one.
            priority: How much it matters when not all can be served.
            idempotency_key: A second request with the same key joins the first one while
                it runs, and gets its answer for a while after; None for no such thing.
            idempotency_scope: Whose key it is: the same key of another caller is another.

        Raises:
            InvalidRequestError: If the request cannot be served by anybody as it is, or its
                key was used for a different one.
            RejectedError: If nobody can take it now; nothing was sent.
            DeadlineExceededError: If its time is over.
            ProviderError: If every attempt failed; this is the last one's failure.
        """
        if not isinstance(request, Request):
            request = ChatRequest.from_body(request)
        asked = request.as_streamed(False)
        if idempotency_key is None:
            run = self._accept(asked, False, timeout, request_id, context, priority)
            return await run.respond()

        async def respond() -> Response:
            run = self._accept(asked, False, timeout, request_id, context, priority)
            return await run.respond()

        return await self._idempotency().complete(
            idempotency_scope, idempotency_key, asked, respond, deadline=self._until(timeout)
        )

    def stream(
        self,
        request: Request | Mapping[str, Any],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        context: Context | None = None,
        priority: Priority = Priority.CRITICAL,
        idempotency_key: str | None = None,
        idempotency_scope: str = "",
    ) -> AbstractAsyncContextManager[AnswerStream]:
        """Get an answer in chunks: `async with router.stream(request) as stream`.

        Entering waits for the first useful event; until then everything may be retried.
        Arguments are those of `complete`.

        Raises:
            InvalidRequestError: On entering, and so for all that `complete` raises; with a
                key, for a wrong body, at once.
            StreamTruncatedError: On reading, if the stream broke.
        """

        def accept() -> RequestRun:
            asked = request if isinstance(request, Request) else ChatRequest.from_body(request)
            asked = asked.as_streamed(True)
            return self._accept(asked, True, timeout, request_id, context, priority)

        if idempotency_key is None:
            return StreamOpening(accept)
        asked = request if isinstance(request, Request) else ChatRequest.from_body(request)
        return self._idempotency().stream(
            idempotency_scope,
            idempotency_key,
            asked.as_streamed(True),
            lambda: StreamOpening(accept),
            deadline=self._until(timeout),
        )

    async def embed(
        self,
        request: Request | Mapping[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the request's deadline
        request_id: str | None = None,
        priority: Priority = Priority.CRITICAL,
    ) -> Response:
        """Get embeddings; like `complete`, for an `EmbeddingRequest` or its JSON object.

        Raises:
            GatewayError: As `complete` does.
        """
        if not isinstance(request, Request):
            request = EmbeddingRequest.from_body(request)
        return await self.complete(
            request, timeout=timeout, request_id=request_id, priority=priority
        )
