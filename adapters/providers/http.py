"""What all adapters for OpenAI-style HTTP APIs share.

A subclass says where the API is and whether it needs a key; see `openai.py`, `vllm.py`.
Requests go straight to an `httpx.AsyncBaseTransport`, never through `httpx.AsyncClient`:
its cookies, redirects and environment proxies have no place in a gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from adapters.json_body import encode_body, parse_answer_body
from adapters.providers.answer_reader import AnswerReader
from adapters.providers.chunk_stream import ChunkStream
from adapters.providers.error_mapping import (
    Reporter,
    error_object_failure,
    status_failure,
    transport_failure,
)
from adapters.providers.health_request import check_url, skip_body
from adapters.providers.outgoing import (
    add_header,
    check_base_url,
    is_trace_header,
    plain_id,
    read_key,
    transport_limits,
    user_agent,
)
from adapters.providers.retry_after import parse_retry_after, parse_should_retry
from engine.attempt import Attempt
from engine.config import ProviderConfig
from engine.errors import ConfigurationError, ProviderError
from engine.operations import Operation, Request, Response
from engine.provider import BaseProvider

if TYPE_CHECKING:
    from adapters.transports import TransportLease

MAX_RESPONSE_BYTES: Final = 52_428_800
"""The largest answer that is not streamed, bytes: 50 MiB."""

_MAX_ERROR_BYTES: Final = 65_536
_ERROR_BODY_SECONDS: Final = 2.0
_MAX_LISTED_MODELS: Final = 10_000

# What llama.cpp's server calls itself; one behind a proxy may hide its name.
_LLAMACPP_NAMES: Final = (None, "", "llama.cpp")

_JSON: Final = "application/json"
_EVENT_STREAM: Final = "text/event-stream"


class HttpAdapter(BaseProvider):
    """Speaks the OpenAI API over HTTP.

    Attributes:
        default_base_url: Used when the configuration names none; None makes it compulsory.
        default_key_env: Environment variable of the key when the configuration names none.
        key_required: Whether the API is of no use without a key.
        may_be_llamacpp: Whether the server may be llama.cpp's, which closes a connection after
            a stream without announcing it: the next call on it would be lost. Streams ask
            for the close until an answer shows that it is another server.
        paths: Where each operation lives under the base URL.
        options: The validated `options` of the configuration.
        base_url: Where the API is, without a slash at its end.
    """

    operations = frozenset({Operation.CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS})
    default_base_url: ClassVar[str | None] = None
    default_key_env: ClassVar[str | None] = None
    key_required: ClassVar[bool] = False
    may_be_llamacpp: ClassVar[bool] = False
    paths: ClassVar[Mapping[Operation, str]] = {
        Operation.CHAT: "/chat/completions",
        Operation.COMPLETIONS: "/completions",
        Operation.EMBEDDINGS: "/embeddings",
    }

    def __init__(
        self, config: ProviderConfig, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Check the configuration.

        Args:
            config: What to speak to.
            transport: How requests reach it; None for the transport that all adapters of
                the process share. A transport given here is not closed by the adapter.

        Raises:
            ConfigurationError: If the URL, the key or the options are missing or wrong.
        """
        super().__init__(config)
        self.options = self._read_options()
        self.base_url = self._read_base_url()
        if config.health_check is not None:
            self._check_the_check(config.health_check.path)
        key = self._read_key()
        self._key = None if key is None else SecretStr(key)
        self._reporter = Reporter(config.name, key)
        self._transport = transport
        self._lease: TransportLease | None = None
        self._close_streams = self.may_be_llamacpp
        # Built at first use: most of ten thousand providers may never be called.
        self._prepared: dict[tuple[str, str], tuple[httpx.URL, httpx.Headers]] = {}

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """How requests reach the upstream; shared by all adapters that were given none."""
        if self._transport is not None:
            return self._transport
        if self._lease is None:
            # Loading the HTTP client takes 0.1 s, and a provider may never be called.
            from adapters.transports import share_transport  # noqa: PLC0415

            self._lease = share_transport()
        return self._lease.transport

    async def send(self, attempt: Attempt) -> Response:
        """Make one call; see `BaseProvider.send`.

        Raises:
            ProviderError: If the call failed.
            InvalidRequestError: If the request cannot be written as JSON.
        """
        request = _with_stream(attempt.request, streamed=False)
        reader = await self._exchange(attempt, request, accept=_JSON)
        try:
            raw = await self._read_answer(reader)
        finally:
            await reader.aclose()
        return Response(self._check_answer(request.operation, raw), raw)

    def stream(self, attempt: Attempt) -> ChunkStream:
        """Make one streamed call; see `BaseProvider.stream`.

        Reading raises `ProviderError` as `send` does.
        """
        request = _with_stream(attempt.request, streamed=True)

        async def open_answer() -> AnswerReader:
            return await self._open_stream(attempt, request)

        return ChunkStream(open_answer, self._reporter, choices=_expected_choices(request))

    async def list_models(self) -> list[str]:
        """The ids that `GET /models` tells, at most 10,000.

        Raises:
            ProviderError: If the upstream cannot be asked, or answers no list.
        """
        url, headers = self._prepare("/models", _JSON)
        request = httpx.Request(
            "GET", url, headers=headers, extensions=transport_limits(self.config.timeouts)
        )
        del request.headers["content-type"]
        reader = AnswerReader(await self._hand_over(request), self._reporter)
        try:
            raw = await self._read_answer(reader)
        finally:
            await reader.aclose()
        listed = self._parse_answer(raw).get("data")
        if not isinstance(listed, list):
            raise self._reporter.broken("answered no list of models")
        found = [entry.get("id") for entry in listed[:_MAX_LISTED_MODELS] if type(entry) is dict]
        return [name for name in found if isinstance(name, str)]

    async def check_health(self, path: str) -> None:
        """Ask with `GET` whether the upstream is well; see `BaseProvider.check_health`.

        Args:
            path: With a leading slash below the server's root, else below the base URL.

        Raises:
            ProviderError: If it answers with any status but 2xx, or cannot be asked.
        """
        _, headers = self._prepare("/models", _JSON)
        request = httpx.Request(
            "GET",
            check_url(self.base_url, path),
            headers=headers,
            extensions=transport_limits(self.config.timeouts),
        )
        del request.headers["content-type"]
        request.headers["accept"] = "*/*"
        reader = AnswerReader(await self._hand_over(request), self._reporter)
        try:
            if not reader.response.is_success:
                status = reader.response.status_code
                raise status_failure(status, b"", self._reporter, retry_after=None)
            await skip_body(reader, _MAX_ERROR_BYTES)
        finally:
            await reader.aclose()

    async def start(self) -> None:
        """Load the HTTP client now, so that the first request need not wait for it."""
        assert self.transport is not None

    async def aclose(self) -> None:
        """Give the shared transport back."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.aclose()

    async def _open_stream(self, attempt: Attempt, request: Request) -> AnswerReader:
        reader = await self._exchange(attempt, request, accept=_EVENT_STREAM)
        try:
            await self._check_head(reader, _EVENT_STREAM)
        except BaseException:
            await reader.aclose()
            raise
        return reader

    async def _exchange(self, attempt: Attempt, request: Request, *, accept: str) -> AnswerReader:
        """Send a request and return its answer, whatever its status."""
        url, headers = self._prepare(self.paths[request.operation], accept)
        body = encode_body(request, attempt.model)
        message = httpx.Request(
            "POST",
            url,
            headers=headers,
            stream=httpx.ByteStream(body),
            extensions=transport_limits(attempt.timeouts),
        )
        add_header(message, b"content-length", str(len(body)))
        add_header(message, b"x-request-id", plain_id(attempt.request_id))
        if self._close_streams and accept is _EVENT_STREAM:
            add_header(message, b"connection", "close")
        for name, value in attempt.trace_headers.items():
            if is_trace_header(name, value):
                add_header(message, name.lower().encode("ascii"), value)
        response = await self._hand_over(message)
        attempt.headers_received()
        if self._close_streams:
            self._close_streams = response.headers.get("server") in _LLAMACPP_NAMES
        return AnswerReader(response, self._reporter)

    async def _hand_over(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self.transport.handle_async_request(request)
        except httpx.RequestError as error:
            failure = transport_failure(error, self._reporter, answered=False)
        # Outside of the handler: the original holds the request with its key.
        raise failure

    async def _read_answer(self, reader: AnswerReader) -> bytes:
        await self._check_head(reader, _JSON)
        return await reader.read_all(MAX_RESPONSE_BYTES)

    async def _check_head(self, reader: AnswerReader, wanted: str) -> None:
        """Raise what the status, encoding or content type of an answer say."""
        response = reader.response
        headers = response.headers
        if not 200 <= response.status_code <= 299:  # noqa: PLR2004 - HTTP's success statuses
            raw = await reader.read_some(_MAX_ERROR_BYTES, _ERROR_BODY_SECONDS)
            raise status_failure(
                response.status_code,
                raw,
                self._reporter,
                retry_after=parse_retry_after(headers),
                should_retry=parse_should_retry(headers),
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise self._reporter.broken("compressed its answer, which was not asked for")
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type == wanted or (wanted == _JSON and _is_json(content_type)):
            return
        if _is_json(content_type):
            # Some servers answer a stream's request with 200 and an error object.
            raw = await reader.read_some(_MAX_ERROR_BYTES, _ERROR_BODY_SECONDS)
            self._raise_error_inside(raw)
        raise self._reporter.broken(f"answered with a content type that is not {wanted}")

    def _raise_error_inside(self, raw: bytes) -> None:
        try:
            body = parse_answer_body(raw)
        except ValueError:
            return
        if failure := self._error_inside(body):
            raise failure

    def _error_inside(self, body: Mapping[str, Any]) -> ProviderError | None:
        """The error that an answer with status 200 may hold."""
        error = body if body.get("object") == "error" else body.get("error")
        return error_object_failure(error, self._reporter) if error else None

    def _parse_answer(self, raw: bytes) -> dict[str, Any]:
        try:
            body = parse_answer_body(raw)
        except ValueError as error:
            what = str(error) if raw else "nothing at all"
            raise self._reporter.broken(f"answered wrongly: {what}") from None
        if failure := self._error_inside(body):
            raise failure
        return body

    def _check_answer(self, operation: Operation, raw: bytes) -> dict[str, Any]:
        body = self._parse_answer(raw)
        field = "data" if operation is Operation.EMBEDDINGS else "choices"
        items = body.get(field)
        if not isinstance(items, list) or not items or not isinstance(items[0], dict):
            raise self._reporter.broken(f"answered without any {field}")
        return body

    def _prepare(self, path: str, accept: str) -> tuple[httpx.URL, httpx.Headers]:
        """The URL and the headers that all requests of one kind have in common."""
        found = self._prepared.get((path, accept))
        if found is None:
            url = httpx.URL(self.base_url + path)
            headers = {
                "host": url.netloc.decode("ascii"),
                "content-type": _JSON,
                "accept": accept,
                "accept-encoding": "identity",
                "user-agent": user_agent(),
            }
            if self._key is not None:
                headers["authorization"] = f"Bearer {self._key.get_secret_value()}"
            found = self._prepared[path, accept] = url, httpx.Headers(headers)
        return found

    def _read_options(self) -> BaseModel:
        try:
            return self.Options.model_validate(self.config.options)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in ("options", *problem["loc"]))
            msg = f"provider {self.name!r}: {where}: {problem['msg']}"
        raise ConfigurationError(msg)

    def _read_base_url(self) -> str:
        base_url = self.config.base_url or self.default_base_url
        if not base_url:
            msg = (
                f"provider {self.name!r} of type {self.config.type!r} needs a base_url: "
                "set it to where the API is, such as http://127.0.0.1:8000/v1"
            )
            raise ConfigurationError(msg)
        try:
            return check_base_url(base_url)
        except ValueError as error:
            msg = f"provider {self.name!r}: base_url {error}"
        raise ConfigurationError(msg)

    def _check_the_check(self, path: str) -> None:
        try:
            # The server's own address may not be known yet.
            check_url("http://server/v1", path)
        except httpx.InvalidURL:
            msg = (
                f"provider {self.name!r}: health_check.path is no path of a URL: "
                "write it like /health or models"
            )
        else:
            return
        raise ConfigurationError(msg)

    def _read_key(self) -> str | None:
        return read_key(self.config, default_env=self.default_key_env, required=self.key_required)


def _with_stream(request: Request, *, streamed: bool) -> Request:
    """The request with `stream` as the call needs it; a caller over HTTP has set it so."""
    if request.streamed is streamed:
        return request
    return type(request).from_body({**request.body, "stream": streamed})


def _expected_choices(request: Request) -> int:
    n = request.body.get("n")
    count = n if type(n) is int and n > 0 else 1
    prompt = request.body.get("prompt")
    if request.operation is Operation.COMPLETIONS and isinstance(prompt, list):
        # A list of numbers is one prompt in tokens; other lists are one prompt an item.
        count *= 1 if all(type(item) is int for item in prompt) else len(prompt)
    return count


def _is_json(content_type: str) -> bool:
    return content_type == _JSON or content_type.endswith("+json")
