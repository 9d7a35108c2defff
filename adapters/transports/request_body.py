"""The body of a request as bytes in memory, and in slices on its way out."""

from collections.abc import AsyncIterator
from typing import Final

import httpx

# Each slice must be taken within the write limit. aiohttp waits for the socket after every 64 KiB
# at the latest, so a slice of twice that ends in one such wait; no more than a slice is copied.
BODY_SLICE_BYTES: Final = 128 * 1_024


async def content_of(request: httpx.Request) -> bytes:
    """Return the body of a request, reading it into memory where it is not there yet."""
    if isinstance(request.stream, httpx.ByteStream):
        # One piece of bytes; asking httpx for it would first raise `RequestNotRead`.
        (content,) = request.stream
        return content
    try:
        return request.content
    except httpx.RequestNotRead:
        if isinstance(request.stream, httpx.SyncByteStream):
            return request.read()
        return await request.aread()


class SlicedStream(httpx.AsyncByteStream):
    """Bytes as a stream of slices.

    httpx's own stream is an asynchronous generator, which a failed upload leaves half run; trio
    warns about each of those. This is a plain iterator.
    """

    __slots__ = ("_content", "_sent")

    def __init__(self, content: bytes) -> None:
        """Hold `content`, which is not copied."""
        self._content = content
        self._sent = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Start from the beginning."""
        self._sent = 0
        return self

    async def __anext__(self) -> bytes:
        """Return the next slice.

        Raises:
            StopAsyncIteration: All is out.
        """
        start = self._sent
        if start >= len(self._content):
            raise StopAsyncIteration
        self._sent = start + BODY_SLICE_BYTES
        return self._content[start : self._sent]
