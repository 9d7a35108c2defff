"""Reads the body of an upstream's answer, bounded, and lets go of its connection."""

from __future__ import annotations

import anyio
import httpx

from adapters.providers.error_mapping import Reporter, transport_failure
from engine.errors import ProviderError

CLOSE_SECONDS = 1.0
"""How long letting go of a connection may take; a transport needs far less."""


class AnswerReader:
    """The body of one answer, in the parts that the network delivers.

    Read by one task at a time; closed exactly by whoever holds it.

    Attributes:
        response: The answer, for its status and headers.
        complete: Whether the body was read to its end.
    """

    __slots__ = ("_parts", "_reporter", "complete", "response")

    def __init__(self, response: httpx.Response, reporter: Reporter) -> None:
        self.response = response
        self.complete = False
        self._reporter = reporter
        # The transport's own stream: httpx would decompress, and nothing may be compressed.
        stream = response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            msg = "the transport gave an answer that cannot be read asynchronously"
            raise TypeError(msg)
        self._parts = stream.__aiter__()

    async def read(self) -> bytes | None:
        """The next part, or None at the end.

        Raises:
            ProviderError: If the body was cut or fell silent.
        """
        try:
            return await self._parts.__anext__()
        except StopAsyncIteration:
            self.complete = True
            return None
        except httpx.RequestError as error:
            failure = transport_failure(error, self._reporter, answered=True)
        # Outside of the handler: the original holds the request with its key.
        raise failure

    async def read_all(self, limit: int) -> bytes:
        """The whole body.

        Args:
            limit: The most it may have, bytes.

        Raises:
            ProviderError: If the body was cut, fell silent, or is larger than `limit`.
        """
        first = await self.read()
        parts, size = [], 0
        part = first
        while part is not None:
            size += len(part)
            if size > limit:
                raise self._reporter.broken(f"answered more than {limit} bytes")
            parts.append(part)
            part = await self.read()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read_some(self, limit: int, seconds: float) -> bytes:
        """As much of the body as comes in a while; never fails, for it explains a failure.

        Args:
            limit: The most that is kept, bytes.
            seconds: How long to wait for it.
        """
        kept = bytearray()
        with anyio.move_on_after(seconds):
            try:
                while len(kept) <= limit and (part := await self.read()) is not None:
                    kept += part[: limit + 1 - len(kept)]
            except ProviderError:
                return bytes(kept)
        return bytes(kept[:limit])

    async def aclose(self) -> None:
        """Release the connection if the body was read to its end, else cut it.

        Works, and is prompt, in a cancelled scope as well. May be called more than once.
        """
        if self.complete:
            await self.response.aclose()
            return
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            try:
                # An async generator that is left half-way would be finished by the garbage
                # collector, in no task at all.
                close_parts = getattr(self._parts, "aclose", None)
                if close_parts is not None:
                    await close_parts()
            finally:
                await self.response.aclose()
