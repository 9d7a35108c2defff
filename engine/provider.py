"""`BaseProvider`: the port that every provider adapter implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import anyio
from pydantic import BaseModel

from engine.attempt import Attempt
from engine.config import ConfigurationModel, ProviderConfig
from engine.errors import SilentError, UnsupportedOperationError
from engine.operations import (
    REQUEST_TYPES,
    ChatRequest,
    Chunk,
    Operation,
    Request,
    Response,
)


class ChunkSource(Protocol):
    """A streamed answer as an adapter gives it: an async iterator that can be closed.

    An async generator is one. It is read by one task at a time, and closed only while
    nobody reads.
    """

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Return the iterator, which is usually the object itself."""
        ...

    async def __anext__(self) -> Chunk:
        """Wait for the next chunk."""
        ...

    async def aclose(self) -> None:
        """Let go of the upstream connection, at once if the answer is not complete."""
        ...


class NoOptions(ConfigurationModel):
    """The `options` of a provider type that has none."""


class BaseProvider(ABC):
    """Speaks the API of one upstream.

    An adapter maps requests to its upstream's API and failures to `engine.errors`. It
    does not retry, wait, queue or keep time: the engine does.

    Constructing one costs microseconds: no I/O, no task, no connection.

    Attributes:
        operations: What this provider can do.
        Options: Model of the `options` in its configuration.
        config: Its configuration.
    """

    operations: ClassVar[frozenset[Operation]]
    Options: ClassVar[type[BaseModel]] = NoOptions

    def __init__(self, config: ProviderConfig) -> None:
        """Keep the configuration.

        Raises:
            ConfigurationError: If a setting that this type needs is missing or wrong.
        """
        self.config = config

    @property
    def name(self) -> str:
        """The provider's unique name."""
        return self.config.name

    @abstractmethod
    async def send(self, attempt: Attempt) -> Response:
        """Make one call and return the whole answer.

        Raises:
            ProviderError: If the call failed; its subclass says how, its `replay` whether
                the upstream may have executed it.
        """

    @abstractmethod
    def stream(self, attempt: Attempt) -> ChunkSource:
        """Make one call whose answer comes in chunks; nothing is sent before the first read.

        Reading raises `ProviderError` for a failure, as `send` does. After a chunk with
        `commits` the engine turns any failure into `StreamTruncatedError`. The iterator
        ends only when the upstream said that the answer is complete.
        """

    async def list_models(self) -> list[str]:
        """Ask the upstream which models it serves.

        Raises:
            ProviderError: If the upstream cannot be asked.
            UnsupportedOperationError: If this type has no such call.
        """
        msg = f"providers of type {self.config.type!r} cannot list their models"
        raise UnsupportedOperationError(msg)

    async def check_health(self, path: str) -> None:
        """Ask the upstream whether it is well; returns if it is. Costs no inference.

        Time is kept by the engine: the check is cancelled when it takes too long.

        Args:
            path: What to ask, as `health_check.path` in the configuration has it.

        Raises:
            ProviderError: If it is not well, or cannot be asked.
            UnsupportedOperationError: If this type cannot be checked; `health_check` is
                then a mistake in its configuration.
        """
        msg = f"providers of type {self.config.type!r} cannot be checked at {path!r}"
        raise UnsupportedOperationError(msg)

    async def start(self) -> None:
        """Get ready to serve; called once, before the first request, by whoever owns it.

        Raises:
            ConfigurationError: If it cannot ever serve as configured.
        """

    async def aclose(self) -> None:
        """Close what the provider holds open. May be called more than once."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def chat_completion(
        self, request: ChatRequest | Mapping[str, Any], request_id: str
    ) -> Response:
        """Make one chat completion without a router: one attempt, no retry, no queue.

        Args:
            request: A `ChatRequest` or its JSON object.
            request_id: Id to be sent upstream and found in the answer.

        Raises:
            InvalidRequestError: If the request cannot be sent as it is.
            ProviderError: If the attempt failed, or took longer than `timeout` seconds.
        """
        return await self.call(Operation.CHAT, request, request_id)

    async def call(
        self, operation: Operation, request: Request | Mapping[str, Any], request_id: str
    ) -> Response:
        """Make one call of any operation without a router; see `chat_completion`.

        Raises:
            InvalidRequestError: If the request cannot be sent as it is.
            ProviderError: If the attempt failed, or took longer than `timeout` seconds.
        """
        if not isinstance(request, Request):
            request = REQUEST_TYPES[operation].from_body(request)
        if request.operation not in self.operations:
            msg = f"provider {self.name!r} does not offer {request.operation.value!r}"
            raise UnsupportedOperationError(msg, param="model")
        attempt = Attempt(request, request.model, request_id, timeouts=self.config.timeouts)
        with anyio.move_on_after(self.config.timeout):
            response = await self.send(attempt)
            response.provider, response.request_id = self.name, request_id
            return response
        msg = f"provider {self.name!r} did not answer within {self.config.timeout:g} s"
        raise SilentError(msg, provider=self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, type={self.config.type!r})"
