"""Faults in the body of an upstream's answer: too slow, cut, garbled, or without an end."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
import pytest
from fault_lab import (
    COMPLETED,
    COMPLETED_AND_CUT,
    SOON,
    TRUNCATED,
    Fault,
    Seen,
    make_tests,
)
from raw_upstream import (
    DONE,
    EVENTS,
    JSON_HEAD,
    LAST_CHUNK,
    SSE_HEAD,
    WHOLE,
    Peer,
    Script,
    chunk,
    event,
)

from adapters.providers import chunk_stream, http

SILENT = Seen("silent", "maybe_accepted", 504, "provider_timeout")
BROKEN = Seen("broken", "maybe_accepted", 502, "provider_protocol_error")
CUT_AFTER_TWO = Seen(
    "after_commit", "accepted", 200, "stream_truncated", committed=True, elsewhere=False, text="we"
)
UNREADABLE = replace(BROKEN, cut=False)
END = event(None, finish="stop") + DONE


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of 2 MiB and an answer of 1 MiB are endless for these tests."""
    monkeypatch.setattr(chunk_stream, "MAX_STREAM_BYTES", 2 << 20)
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 1 << 20)


# ── scripts ──────────────────────────────────────────────────────────────────────

Part = Callable[[Peer], Awaitable[None]]


async def begin(peer: Peer) -> None:
    """Send the head and a first part: half an answer, or one event."""
    if peer.streamed:
        await peer.send(SSE_HEAD + chunk(event("we")))
    else:
        await peer.send(JSON_HEAD + b"content-length: %d\r\n\r\n" % len(WHOLE) + WHOLE[:40])


def begun_then(go_on: Part) -> Script:
    """Read the request, send the first part, and go on as told."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await begin(peer)
        await go_on(peer)

    return script


def answering(body: bytes, events: bytes) -> Script:
    """Answer every request with these bytes, correctly framed, and stay."""

    async def script(peer: Peer) -> None:
        while await peer.read_request():
            if peer.streamed:
                await peer.send(SSE_HEAD + chunk(events) + LAST_CHUNK)
            else:
                await peer.answer(body)

    return script


def as_type(whole: bytes, streamed: bytes, body: bytes = WHOLE, events: bytes = EVENTS) -> Script:
    """Answer with these content types."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        if peer.streamed:
            await peer.answer(events, kind=streamed)
        else:
            await peer.answer(body, kind=whole)
        await peer.hold()

    return script


def raw(whole: bytes, streamed: bytes) -> Script:
    """Answer with these bytes, framing included, and stay."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(streamed if peer.streamed else whole)
        await peer.hold()

    return script


async def hold(peer: Peer) -> None:
    """Say nothing more."""
    await peer.hold()


async def trickle(peer: Peer) -> None:
    """Send the rest one byte at a time; it never becomes an event."""
    while True:
        await peer.send(chunk(b":") if peer.streamed else b" ")
        await anyio.sleep(0.02)


async def reset(peer: Peer) -> None:
    """Reset, once the gateway has had the time to read."""
    await anyio.sleep(0.05)
    await peer.reset()


async def end(peer: Peer) -> None:
    """Close."""


async def garble(peer: Peer) -> None:
    """Send a chunk whose size is none."""
    await peer.send(b"zz\r\nabc\r\n")
    await peer.hold()


async def flood(peer: Peer) -> None:
    """Send events, or a body, without an end."""
    await peer.read_request()
    await peer.send(SSE_HEAD if peer.streamed else JSON_HEAD + b"content-length: 9999999\r\n\r\n")
    while True:
        await peer.send(chunk(event("x" * 8_000)) if peer.streamed else b" " * 65_536)


async def go_on_and_on(peer: Peer) -> None:
    """Send an event now and then, for ever."""
    await peer.read_request()
    await peer.send(SSE_HEAD)
    while True:
        await peer.send(chunk(event("we")))
        await anyio.sleep(0.05)


async def send_long_line(peer: Peer) -> None:
    """Send a line that has no end."""
    while True:
        await peer.send(chunk(b"x" * 65_536))


async def long_line_first(peer: Peer) -> None:
    """Begin a stream with a line that has no end."""
    await peer.read_request()
    await peer.send(SSE_HEAD + chunk(b"data: "))
    await send_long_line(peer)


async def one_byte_at_a_time(peer: Peer) -> None:
    """Send everything in pieces of one byte."""
    await peer.read_request()
    data = (
        SSE_HEAD + b"".join(chunk(EVENTS[at : at + 1]) for at in range(len(EVENTS))) + LAST_CHUNK
        if peer.streamed
        else JSON_HEAD + b"content-length: %d\r\n\r\n" % len(WHOLE) + WHOLE
    )
    for at in range(len(data)):
        await peer.send(data[at : at + 1])
    await peer.hold()


async def surplus(peer: Peer) -> None:
    """Send with the first answer another one, that nobody has asked for."""
    await peer.read_request()
    if peer.number:
        await peer.answer_well()
    else:
        length = b"server: fake\r\ncontent-length: %d\r\n\r\n" % len(WHOLE)
        stray = JSON_HEAD + b"content-length: 2\r\n\r\n{}"
        await peer.send(JSON_HEAD + length + WHOLE + stray)
        await peer.hold()


def short_length() -> bytes:
    """A content length that is smaller than the body."""
    return JSON_HEAD + b"content-length: %d\r\n\r\n%b" % (len(WHOLE), WHOLE + b"  surplus")


ODD = EVENTS.replace(b"\n", b"\r\n")
OLD = EVENTS.replace(b"\n", b"\r")
COMMENTED = b"\xef\xbb\xbf: hello\nid: 1\nretry: 3000\n\n" + EVENTS.replace(b"data: ", b"data:")
SPLIT = EVENTS.replace(b', "choices"', b',\ndata: "choices"')
TWICE = WHOLE.replace(b'"model"', b'"model": "other", "model"', 1)
BOMB = gzip.compress(b" " * 10_000_000)
HTML = b"<html><body>502 Bad Gateway</body></html>"


def wrong_in_json(wrong: bytes) -> tuple[bytes, bytes]:
    """A whole answer, and a stream's first event, with this in the place of the text."""
    events = EVENTS.replace(b'"we"', wrong)
    return WHOLE.replace(b'"content": "well"', b'"content": ' + wrong), events


LONE = wrong_in_json(b'"\\ud800"')
NOT_UTF8 = wrong_in_json(b'"\xff\xfe"')
NOT_A_NUMBER = wrong_in_json(b"NaN")
NUL = wrong_in_json(b'"we\x00"')
LATER = event("we") + event("ll").replace(b'"ll"', b'"\xff"') + END
COMPRESSED = b"content-encoding: gzip\r\n"

FAULTS = [
    Fault("U16", "body byte by byte", begun_then(trickle), SILENT, CUT_AFTER_TWO,
          timeout=0.7, timeouts={"idle": SOON},
          note="The limit between events starts anew with an event, not with a byte; that of the "
          "attempt holds for an answer that is not streamed."),
    Fault("U17", "stall mid-stream", begun_then(hold), SILENT, CUT_AFTER_TWO,
          timeout=0.7, timeouts={"idle": SOON}),
    Fault("U17", "stall before the first event", raw(JSON_HEAD, SSE_HEAD), SILENT, SILENT,
          timeouts={"first_event": SOON, "headers": SOON}),
    Fault("U18", "reset mid-stream", begun_then(reset), BROKEN, CUT_AFTER_TWO),
    Fault("U19", "close mid-stream", begun_then(end), BROKEN, CUT_AFTER_TWO),
    Fault("U20", "content length larger than the body",
          raw(JSON_HEAD + b"content-length: 9999\r\nconnection: close\r\n\r\n" + WHOLE, b"H"),
          SILENT, None, timeout=SOON),
    Fault("U21", "content length smaller than the body", raw(short_length(), b""),
          COMPLETED_AND_CUT, None,
          note="The surplus is dropped with its connection, so it cannot become somebody else's "
          "answer."),
    Fault("U21", "content length cuts the body",
          raw(JSON_HEAD + b"content-length: 20\r\n\r\n" + WHOLE, b""), BROKEN, None),
    Fault("U22", "garbled chunk", begun_then(garble), None, CUT_AFTER_TWO),
    Fault("U22", "chunk larger than its size",
          raw(JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n4\r\n" + WHOLE, b""), BROKEN, None),
    Fault("U22", "trailers",
          raw(JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(WHOLE)
              + b"0\r\nx-checksum: 1\r\n\r\n",
              SSE_HEAD + chunk(EVENTS) + b"0\r\nx-checksum: 1\r\n\r\n"), COMPLETED, COMPLETED,
          note="They are read and dropped."),
    Fault("U25", "lines that end in CR LF", answering(WHOLE, ODD), None, COMPLETED),
    Fault("U25", "lines that end in CR", answering(WHOLE, OLD), None, COMPLETED),
    Fault("U25", "byte order mark, comments, id, retry and no blank after the colon",
          answering(WHOLE, COMMENTED), None, COMPLETED),
    Fault("U25", "data on several lines", answering(WHOLE, SPLIT), None, COMPLETED),
    Fault("U25", "one byte in each read", one_byte_at_a_time, COMPLETED, COMPLETED),
    Fault("U26", "event without an end before the first output", long_line_first, None, BROKEN,
          note="An event has 1 MiB at most, so that is all that is held."),
    Fault("U26", "event without an end mid-stream", begun_then(send_long_line), None,
          CUT_AFTER_TWO),
    Fault("U27", "stream without an end", flood, None, TRUNCATED,
          note="A stream ends after 512 MiB, and in any case at the deadline of its request."),
    Fault("U27", "stream that outlives its deadline", go_on_and_on, None,
          replace(TRUNCATED, counted=False),
          total=0.7, note="The deadline is the caller's, so it says nothing of the provider."),
    Fault("U28", "huge answer", flood, BROKEN, None, note="50 MiB are read of it at most."),
    Fault("U29", "compressed answer",
          raw(JSON_HEAD + COMPRESSED + b"content-length: %d\r\n\r\n" % len(BOMB) + BOMB,
              SSE_HEAD.replace(b"\r\n\r\n", b"\r\n" + COMPRESSED + b"\r\n") + chunk(BOMB)),
          UNREADABLE, BROKEN,
          note="The gateway asks for none and unpacks none, so a bomb stays small."),
    Fault("U30", "HTML with status 200", as_type(b"text/html", b"text/html", HTML, HTML),
          UNREADABLE, BROKEN, note="It is never passed on."),
    Fault("U30", "JSON as text", as_type(b"text/plain", b"text/plain"), UNREADABLE, BROKEN),
    Fault("U30", "no content type",
          raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(WHOLE) + WHOLE,
              b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(EVENTS) + EVENTS),
          UNREADABLE, BROKEN),
    Fault("U30", "a stream where an answer was asked, and the other way round",
          as_type(b"text/event-stream", b"application/json", EVENTS, WHOLE), UNREADABLE, BROKEN),
    Fault("U31", "half a surrogate pair", answering(*LONE), UNREADABLE, BROKEN),
    Fault("U31", "not UTF-8", answering(*NOT_UTF8), UNREADABLE, BROKEN),
    Fault("U31", "not UTF-8 mid-stream", answering(WHOLE, LATER), None, CUT_AFTER_TWO),
    Fault("U31", "NaN", answering(*NOT_A_NUMBER), UNREADABLE, BROKEN),
    Fault("U31", "bare NUL", answering(*NUL), UNREADABLE, BROKEN),
    Fault("U31", "a key twice", answering(TWICE, EVENTS.replace(b'"model"', b'"id": "b", "model"')),
          COMPLETED, COMPLETED,
          note="Passed on as it came: the gateway decides nothing by these keys."),
    Fault("U41", "an answer that nobody has asked for", surplus, COMPLETED, COMPLETED,
          warm=1,
          note="What comes in while nothing is asked cuts the connection, so it cannot answer the "
          "next request. An upstream that mixes up answers on separate connections cannot be "
          "found out: they carry nothing that says whose they are."),
]  # fmt: skip

globals().update(make_tests(FAULTS))
