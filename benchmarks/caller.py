"""A caller that never repeats: what it sends and does not get an answer to is lost."""

from __future__ import annotations

import contextlib
import json
import re
import select
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import anyio
import anyio.abc

from benchmarks.wire import ANSWER, CHUNKS

LARGEST_ANSWER = 1_048_576
"""Bytes that are kept of one answer; the right ones are much smaller."""

_CONTENT = json.loads(ANSWER)["choices"][0]["message"]["content"]
_LENGTH = re.compile(rb"\r\ncontent-length: (\d{1,9})\r\n", re.IGNORECASE)
_LAST_CHUNK = b"0\r\n\r\n"


class Ending(StrEnum):
    """What a caller got for a request."""

    RIGHT = "right"
    WRONG = "wrong"
    TOLD = "told"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came for one request.

    Attributes:
        status: HTTP status; 0 if the connection ended before the answer was whole.
        fields: Header fields, names in lower case.
        body: The body, as it came on the wire.
    """

    status: int
    fields: Mapping[str, str]
    body: bytes

    @property
    def streamed(self) -> bool:
        """Whether it is a stream."""
        return self.fields.get("content-type", "").startswith("text/event-stream")

    @property
    def ending(self) -> Ending:
        """Right, an explicit error, neither of them (wrong), or nothing whole (lost)."""
        if not self.status:
            return Ending.LOST
        if self.streamed:
            errors, done = self.body.count(b'data: {"error"'), b"data: [DONE]" in self.body
            if errors == 1 and not done:
                return Ending.TOLD
            complete = self.body.count(b"data: {") == len(CHUNKS)
            return Ending.RIGHT if done and complete and not errors else Ending.WRONG
        if self.status != 200:
            return Ending.TOLD if b'"error"' in self.body else Ending.WRONG
        try:
            content = json.loads(self.body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return Ending.WRONG
        return Ending.RIGHT if content == _CONTENT else Ending.WRONG

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: If it is none.
        """
        return json.loads(self.body)


LOST = Answer(0, {}, b"")


@dataclass(slots=True)
class Tally:
    """What many callers got.

    Attributes:
        answers: Answers of one piece, by how they ended.
        streams: Streams, by how they ended.
        statuses: Answers by status; 0 for none.
        left: Requests whose caller left.
    """

    answers: Counter[Ending] = field(default_factory=Counter)
    streams: Counter[Ending] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    left: int = 0

    def count(self, answer: Answer, *, streamed: bool) -> None:
        """Note an answer to a request that wanted a stream, or none."""
        (self.streams if streamed else self.answers)[answer.ending] += 1
        self.statuses[answer.status] += 1

    @property
    def total(self) -> int:
        """Requests that were sent, those of callers who left included."""
        return self.statuses.total() + self.left

    def of(self, ending: Ending) -> int:
        """Requests that ended so, streamed or not."""
        return self.answers[ending] + self.streams[ending]


class Caller:
    """A caller on one kept connection, which opens another when it is told to close.

    Args:
        port: Where, on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._stream: anyio.abc.SocketStream | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def send(self, message: bytes) -> bool:
        """Send a request; False if nobody listens any more, so that it was not sent.

        A kept connection that was closed meanwhile is replaced, as every HTTP client does.
        """
        if self._stream is not None and _is_closed(self._stream):
            await self.leave()
        if self._stream is None:
            try:
                self._stream = await anyio.connect_tcp("127.0.0.1", self._port)
            except OSError:
                return False
        # Part of it may have arrived: whether it did, the answer that is missing will tell.
        with contextlib.suppress(anyio.BrokenResourceError):
            await self._stream.send(message)
        return True

    async def receive(self) -> Answer:
        """Read the answer; `LOST` if the connection ends before it is whole."""
        assert self._stream is not None
        received = b""
        try:
            while (answer := _parse(received)) is None and len(received) <= LARGEST_ANSWER:
                received += await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            answer = None
        if answer is None:
            await self.leave()
            return LOST
        if answer.fields.get("connection", "").lower() == "close":
            await self.leave()
        return answer

    async def receive_some(self, wanted: bytes) -> bool:
        """Read until something has come, and no further; False if the connection ends before."""
        assert self._stream is not None
        received = b""
        try:
            while wanted not in received:
                received += await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return False
        return True

    async def ask(self, message: bytes) -> Answer | None:
        """Send a request and read its answer; None if nobody listens any more."""
        return await self.receive() if await self.send(message) else None

    async def leave(self) -> None:
        """Close the connection, whatever is under way."""
        if self._stream is not None:
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()
            self._stream = None


async def fetch(port: int, path: str, *, method: str = "GET") -> Answer:
    """Ask for something that is no model, over a connection of its own."""
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: 0\r\n\r\n"
    async with Caller(port) as caller:
        return await caller.ask(head.encode("ascii")) or LOST


def _is_closed(stream: anyio.abc.SocketStream) -> bool:
    """Whether the other end of an idle connection has closed it, or has sent something unasked."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - not Django's
    return bool(select.select([raw], [], [], 0)[0])


def _parse(received: bytes) -> Answer | None:
    """The answer, if it is whole."""
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return None
    length = _LENGTH.search(head + b"\r\n")
    if len(body) < int(length[1]) if length is not None else not body.endswith(_LAST_CHUNK):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    fields = {name.lower(): value for name, _, value in pairs}
    return Answer(int(first.split()[1]), fields, body)
