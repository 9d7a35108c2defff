"""`ServedRequest`: one HTTP request from its head to its log line.

Here stands what every answer has in common: the request id, the header fields, the
counting of time, the span and the line in the log. The endpoints only say what to answer.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from starlette.types import Scope, Send

from adapters.frontdoor.border import exchange_of
from adapters.frontdoor.failure import Failure, failure_of, fallback_field
from adapters.frontdoor.openai_dialect import JSON_TYPE, SSE_TYPE, Dialect
from adapters.frontdoor.refusal import Refusal
from adapters.observability.logs import RequestRecord
from engine.ledger import Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from adapters.configuration.reloading import ConfigurationReload
    from adapters.frontdoor.access import AccessControl
    from adapters.frontdoor.drain import Draining
    from adapters.frontdoor.receiver import Exchange
    from adapters.frontdoor.server_span import ServerSpans
    from engine.answer_stream import AnswerStream
    from engine.operations import Response
    from engine.router import Router

logger = logging.getLogger(__name__)

MAX_REQUEST_ID = 128
"""Characters of a caller's own request id; a longer one is replaced."""

_CLIENT_GONE = 499
_CUT_BY_DRAIN = 503
_NO_ROUTE = "(none)"

Header = tuple[bytes, bytes]


class RecordSink(Protocol):
    """Where request records go; `adapters.observability.RequestLog` is one."""

    def write(self, record: RequestRecord) -> None:
        """Take one record; never blocks and never raises."""


class FrontDesk:
    """What all requests of one application share.

    Args:
        router: The engine.
        access: Who may ask for what.
        spans: Makes the SERVER spans.
        request_log: Takes one record for each request; None keeps none.
        draining: Whether the server is going away.
        clock: Monotonic seconds.
        reloading: Puts the configuration file into service again; None without a file.
    """

    __slots__ = (
        "_id_prefix",
        "_ids",
        "access",
        "clock",
        "draining",
        "reloading",
        "request_log",
        "router",
        "spans",
    )

    def __init__(
        self,
        router: Router,
        *,
        access: AccessControl,
        spans: ServerSpans,
        request_log: RecordSink | None,
        draining: Draining,
        clock: Callable[[], float],
        reloading: ConfigurationReload | None = None,
    ) -> None:
        self.reloading = reloading
        self.router = router
        self.access = access
        self.spans = spans
        self.request_log = request_log
        self.draining = draining
        self.clock = clock
        # Unique over processes and restarts, without a draw of randomness per request.
        self._id_prefix = f"req-{secrets.token_hex(6)}-"
        self._ids = count(1)

    def request_id(self, given: bytes | None) -> str:
        """The caller's own id if it can stand in headers and logs, else a new one."""
        if given is not None and 0 < len(given) <= MAX_REQUEST_ID and given.isascii():
            text = given.decode()
            if text.isprintable():
                return text
        return f"{self._id_prefix}{next(self._ids)}"

    def log_refusal(self, scope: Scope, refusal: Refusal, request_id: str) -> None:
        """Write the log line of a request that the framing gate did not let in.

        Args:
            scope: The request's ASGI scope; none of its fields is trusted, and no path is logged.
            refusal: Why.
            request_id: The id that its sender was told.
        """
        if self.request_log is not None:
            self.request_log.write(
                RequestRecord(
                    request_id=request_id,
                    method=scope["method"],
                    route=_NO_ROUTE,
                    status=refusal.status,
                    outcome=Outcome.REJECTED.value,
                    error_code=refusal.code,
                )
            )


class ServedRequest:
    """One request and its answer.

    Attributes:
        scope: The ASGI scope.
        send: ASGI `send`, for the events of a stream; back-pressure comes from here.
        exchange: Reads the body, and does work that ends when the client leaves.
        headers: Header fields, names in lower case.
        id: The request's id.
        model: The model that was asked for, once it is known.
        streamed: Whether a stream was asked for; None where there is no such thing.
        started: Whether the status has been sent.
    """

    __slots__ = (
        "_attempts",
        "_began",
        "_desk",
        "_dialect",
        "_failure",
        "_outcome",
        "_overhead_ms",
        "_provider",
        "_route",
        "_span",
        "_status",
        "exchange",
        "headers",
        "id",
        "model",
        "scope",
        "send",
        "streamed",
    )

    def __init__(
        self, desk: FrontDesk, scope: Scope, send: Send, *, route: str | None, dialect: Dialect
    ) -> None:
        self._desk = desk
        self._began = desk.clock()
        self.send = send
        self._route = route
        self._dialect = dialect
        self._status: int | None = None
        self._outcome: Outcome | None = None
        self._failure: Failure | None = None
        self._provider: str | None = None
        self._attempts: int | None = None
        self._overhead_ms: float | None = None
        self.scope = scope
        self.exchange: Exchange = exchange_of(scope)
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = desk.request_id(self.headers.get(b"x-request-id"))
        self.model: str | None = None
        self.streamed: bool | None = None
        self._span: Span | None = desk.spans.start(
            scope, self.headers, route=route, now=self._began
        )

    @property
    def started(self) -> bool:
        """Whether the status has been sent and can no longer be changed."""
        return self._status is not None

    @property
    def context(self) -> Context | None:
        """Trace context for the work of this request; None while nobody records."""
        return None if self._span is None else trace.set_span_in_context(self._span, Context())

    @property
    def elapsed(self) -> float:
        """Seconds since the request's head was here."""
        return self._desk.clock() - self._began

    # ── answers ──────────────────────────────────────────────────────────────────

    async def answer(
        self, body: bytes, *, status: int = 200, headers: Iterable[Header] = ()
    ) -> None:
        """Send a whole JSON answer.

        Raises:
            ClientDisconnectedError: If the client has left.
        """
        await self._send_whole(status, body, headers)
        self._outcome = Outcome.COMPLETED

    async def answer_with(self, response: Response) -> None:
        """Send a provider's whole answer.

        Raises:
            ClientDisconnectedError: If the client has left.
        """
        await self.answer(self._dialect.answer(response), headers=self._route_facts(response))

    async def start_stream(self, stream: AnswerStream) -> None:
        """Send status and header fields of a stream.

        Raises:
            ClientDisconnectedError: If the client has left.
        """
        await self._start(200, [(b"content-type", SSE_TYPE), (b"x-accel-buffering", b"no")],
                          self._route_facts(stream))  # fmt: skip

    async def end_stream(self, error: Exception | None) -> None:
        """Send the last event: the end marker, or the error that cut the stream.

        Raises:
            ClientDisconnectedError: If the client has left.
        """
        if error is None:
            last = self._dialect.stream_end
        else:
            self._failure = failure_of(error, self.id)
            last = self._dialect.error_event(self._failure)
        await self.send({"type": "http.response.body", "body": last, "more_body": False})
        self._outcome = Outcome.COMPLETED if self._failure is None else self._failure.outcome

    async def fail(self, error: Exception) -> None:
        """Answer with an error, if there is still something to answer.

        Raises:
            ClientDisconnectedError: If the client has left.
        """
        self._failure = failure = failure_of(error, self.id)
        self._outcome = failure.outcome
        self._provider, self._attempts = failure.provider, failure.attempts or None
        if failure.code == "internal_error":
            # The type only: the text of a foreign exception may hold a prompt or a key.
            logger.error("request %s failed with %s", self.id, type(error).__name__)
        if not self.started:
            body = self._dialect.error(failure)
            await self._send_whole(failure.status, body, failure.header_fields())

    def _route_facts(self, answer: Response | AnswerStream) -> list[Header]:
        """What the caller may know about how its answer came to be."""
        self._provider, self._attempts = answer.provider, answer.attempts
        overhead = self._overhead_ms = max(0.0, self.elapsed - answer.upstream_seconds) * 1000
        facts = [
            (b"x-gateway-provider", answer.provider.encode("latin-1", "replace")),
            (b"x-gateway-attempts", b"%d" % answer.attempts),
            (b"x-gateway-overhead-ms", b"%.2f" % overhead),
        ]
        if answer.fallbacks:
            facts.append(fallback_field(answer.fallbacks))
        if answer.replayed is not None:
            facts.append((b"x-gateway-idempotency", answer.replayed.value.encode()))
        return facts

    async def _send_whole(self, status: int, body: bytes, headers: Iterable[Header]) -> None:
        own = [(b"content-type", JSON_TYPE), (b"content-length", b"%d" % len(body))]
        await self._start(status, own, headers)
        if self.scope["method"] == "HEAD":
            body = b""
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, status: int, own: list[Header], headers: Iterable[Header]) -> None:
        fields = [
            *own,
            (b"cache-control", b"no-store"),
            (b"vary", b"authorization"),
            (b"x-request-id", self.id.encode()),
            *headers,
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": fields})
        self._status = status

    # ── the end ──────────────────────────────────────────────────────────────────

    def finish(self) -> None:
        """End the span and write the log line; called once, whatever has happened."""
        status, failure = self._status, self._failure
        if self._span is not None:
            self._desk.spans.end(self._span, status, failure)
        if self._desk.request_log is None:
            return
        code = failure.code if failure is not None else None
        if self._outcome is None or self.exchange.gone:
            code, status = self._who_left(status)
        self._desk.request_log.write(self._record(status or _CLIENT_GONE, code))

    def _who_left(self, status: int | None) -> tuple[str, int | None]:
        """Why there is no whole answer: the client left, or the server did."""
        self._outcome = Outcome.CANCELLED
        if self.exchange.gone:
            return "client_disconnected", status
        return "server_draining", status or _CUT_BY_DRAIN

    def _record(self, status: int, code: str | None) -> RequestRecord:
        return RequestRecord(
            request_id=self.id,
            method=self.scope["method"],
            route=self._route or _NO_ROUTE,
            status=status,
            outcome=self._outcome.value if self._outcome is not None else None,
            model=self.model,
            provider=self._provider,
            attempts=self._attempts,
            duration_ms=self.elapsed * 1000,
            overhead_ms=self._overhead_ms,
            stream=self.streamed,
            error_code=code,
        )

    def __repr__(self) -> str:
        state = "answered" if self._outcome else "started" if self.started else "open"
        return f"ServedRequest({self.id!r}, {self._route or _NO_ROUTE}, {state})"
