"""Faults in the head of an upstream's answer."""

from __future__ import annotations

import anyio
from fault_lab import COMPLETED, COMPLETED_AND_CUT, SOON, Fault, Seen, make_tests
from raw_upstream import EVENTS, JSON_HEAD, SSE_HEAD, WHOLE, Peer, Script

SILENT = Seen("silent", "maybe_accepted", 504, "provider_timeout")
BROKEN = Seen("broken", "maybe_accepted", 502, "provider_protocol_error")


def sending(data: bytes) -> Script:
    """Read the request, send bytes that do not depend on it, and stay."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(data)
        await peer.hold()

    return script


async def read_and_hold(peer: Peer) -> None:
    """Read the whole request, and say nothing."""
    await peer.read_request()
    await peer.hold()


async def trickle_head(peer: Peer) -> None:
    """Send a head that has no end, one byte at a time."""
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while True:
        await peer.send(b"x")
        await anyio.sleep(0.02)


async def speak_http_0_9(peer: Peer) -> None:
    """Answer the body alone, as before HTTP/1.0."""
    await peer.read_request()
    await peer.send(WHOLE)


def http_1_0(body: bytes, events: bytes) -> Script:
    """Answer in HTTP/1.0: the body ends with the connection."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        kind, data = (
            (b"text/event-stream", events) if peer.streamed else (b"application/json", body)
        )
        await peer.send(b"HTTP/1.0 200 OK\r\ncontent-type: %b\r\n\r\n%b" % (kind, data))

    return script


async def say_more_first(peer: Peer) -> None:
    """Send informational answers before the real one."""
    await peer.read_request()
    await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n" * 3)
    await peer.answer_well()
    await peer.hold()


async def say_more_for_ever(peer: Peer) -> None:
    """Send informational answers without an end."""
    await peer.read_request()
    while True:
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")


async def redirect(peer: Peer) -> None:
    """Send the caller to where the keys of cloud machines are, and see who comes."""
    request = await peer.read_request()
    host = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"host:"))
    place = b"http://" + host.split(b" ")[1] + b"/latest/meta-data/"
    await peer.answer(b"", status=b"307 Temporary Redirect", head=b"location: %b\r\n" % place)
    # The same server, so that a redirect that was followed would be counted.
    await peer.read_request()


HEADERS = b"".join(b"x-%d: y\r\n" % number for number in range(20_000))

FAULTS = [
    Fault("U11", "headers never come", read_and_hold, SILENT, SILENT,
          timeouts={"headers": SOON, "first_event": SOON}),
    Fault("U12", "headers come byte by byte", trickle_head, SILENT, SILENT,
          timeouts={"headers": SOON, "first_event": SOON},
          note="The limit is one for all of the head, not for each read."),
    Fault("U13", "20,000 headers", sending(JSON_HEAD + HEADERS + b"\r\n"), BROKEN, BROKEN,
          note="At most 256 header fields of 16 KiB each, 256 KiB in all."),
    Fault("U13", "a header line of 1 MiB", sending(JSON_HEAD + b"x: " + b"y" * 1_048_576), BROKEN,
          BROKEN),
    Fault("U14", "bytes of another protocol", sending(b"SSH-2.0-OpenSSH_9.6\r\n"), BROKEN, BROKEN),
    Fault("U14", "garbled status line", sending(b"HTTP/1.1 2x0 OK\r\n\r\n"), BROKEN, BROKEN),
    Fault("U14", "HTTP 0.9", speak_http_0_9, BROKEN, BROKEN),
    Fault("U15", "HTTP 1.0 without a length", http_1_0(WHOLE, EVENTS), COMPLETED_AND_CUT,
          COMPLETED_AND_CUT,
          note="The body ends with the connection. It is complete if it parses; a stream, if it "
          "has its end marker or the finish reason of each choice."),
    Fault("U15", "HTTP 1.0 cut short", http_1_0(WHOLE[:-9], b""), BROKEN, BROKEN),
    Fault("U38", "redirect", redirect,
          Seen("broken", "not_accepted", 502, "provider_protocol_error", cut=False),
          Seen("broken", "not_accepted", 502, "provider_protocol_error", cut=False),
          note="Never followed, so the key goes nowhere else. The base URL is wrong, or somebody "
          "stands in between."),
    Fault("U39", "informational answers first", say_more_first, COMPLETED, COMPLETED),
    Fault("U39", "informational answers for ever", say_more_for_ever, BROKEN, BROKEN,
          note="Ten are read."),
    Fault("U39", "switch to another protocol",
          sending(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n" + SSE_HEAD), BROKEN,
          BROKEN),
]  # fmt: skip

globals().update(make_tests(FAULTS))
