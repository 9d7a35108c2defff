"""`StreamOpening`: the way into a streamed answer, and the certain way out."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from engine.request_run import RequestRun
from engine.streaming import ResponseStream


class StreamOpening:
    """What `Router.stream` returns: entering it opens the stream, leaving it closes it."""

    __slots__ = ("_accept", "_stream")

    def __init__(self, accept: Callable[[], RequestRun]) -> None:
        self._accept = accept
        self._stream: ResponseStream | None = None

    async def __aenter__(self) -> ResponseStream:
        self._stream = await self._accept().open_stream()
        return self._stream

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.release()
