"""An answer that is cut at each of its bytes, one call after the other."""

from __future__ import annotations

import pytest
from fault_calls import Call, Caller, Entrance
from fault_lab import Case, Fault, Lab, Seen
from fault_table import Row, shows
from raw_upstream import JSON_HEAD, LAST_CHUNK, SSE_HEAD, Peer, chunk

NEVER_EJECTED = {"ejection": {"consecutive_failures": 0, "failure_rate": 0}}
"""Or the provider would be closed after the first few of hundreds of failures."""

WHOLE = b'{"choices":[{"index":0,"message":{"content":"w\xc3\xabll"},"finish_reason":"stop"}]}'


def event(text: str) -> bytes:
    """An event whose lines end in CR LF, so that there is one byte more to be cut at."""
    return b'data: {"choices":[{"delta":{"content":"%b"}}]}\r\n\r\n' % text.encode()


END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\r\n\r\n'
STREAM = event("w\u00eb") + event("ll") + END + b"data: [DONE]\r\n\r\n"
BROKEN = Seen("broken", "maybe_accepted", 502, "provider_protocol_error")


def text_by(offset: int) -> str:
    """The text of the events that are complete before the offset: CR ends a line at once."""
    return "".join(("w\u00eb", "ll", "")[: STREAM[:offset].count(b"\r\n\r")])


def is_complete(offset: int) -> bool:
    """Whether nothing but the rest of a blank line, or the end marker, is missing."""
    got = STREAM[:offset]
    finished = got.count(b"\r\n\r") >= 3
    return finished and (got.endswith((b"}\r\n\r", b"\r\n\r\n")) or b"[DONE]" in got)


def cutting(*, honest: bool) -> Fault:
    """A provider that cuts its n-th answer at the n-th byte.

    Args:
        honest: Whether its framing promises more, so that the cut shows; else a proxy in
            between has given the remains a framing of their own.
    """

    async def script(peer: Peer) -> None:
        await peer.read_request()
        if peer.streamed:
            part = STREAM[: peer.number]
            body = chunk(part) if part else b""
            await peer.send(SSE_HEAD + body + (b"" if honest else LAST_CHUNK))
        else:
            part = WHOLE[: peer.number]
            length = len(WHOLE) if honest else len(part)
            await peer.send(JSON_HEAD + b"content-length: %d\r\nconnection: close\r\n\r\n" % length)
            await peer.send(part) if part else None

    return Fault("U24", "cut", script, BROKEN, BROKEN, settings=NEVER_EJECTED)


def judge_stream(caller: Caller, offset: int, *, honest: bool) -> None:
    """What came before the cut is there, nothing else is, and it is never called complete."""
    found = (caller.status, caller.code, caller.text)
    text = text_by(offset)
    if is_complete(offset) and (not honest or b"[DONE]\r\n\r" in STREAM[:offset]):
        assert found == (200, None, "w\u00ebll")
    elif text:
        assert found == (200, "stream_truncated", text)
    else:
        assert found == (502, "provider_protocol_error", "")


def judge_whole(caller: Caller) -> None:
    """Half an answer is none."""
    assert (caller.status, caller.code) == (502, "provider_protocol_error")


CUT_JSON = Row(
    "U23", "JSON cut at any byte", "502 `provider_protocol_error`",
    "where repeating is allowed: elsewhere", "maybe", "a failure",
)  # fmt: skip
CUT_STREAM = Row(
    "U24", "stream cut at any byte",
    "before the first output 502 `provider_protocol_error`; after it the whole events so far, "
    "then an error event `stream_truncated`",
    "before the first output where repeating is allowed: elsewhere; then nothing",
    "maybe; after the first output yes", "a failure",
    "Also inside a character, and between CR and LF, and whether or not a proxy has given the "
    "remains a framing that is whole. The event that was cut is dropped.",
)  # fmt: skip


@pytest.mark.parametrize("honest", [True, False], ids=["cut", "reframed"])
@shows(CUT_JSON)
async def test_u23_json_cut_at_any_byte(entrance: Entrance, honest: bool) -> None:
    """U23: wherever an answer is cut, the caller gets an error and no part of it."""
    case = Case(cutting(honest=honest), streamed=False, behind="alone")

    async def use(call: Call) -> None:
        for _ in range(len(WHOLE)):
            judge_whole(await call(case.body))

    await Lab([case]).run(entrance, use)
    assert len(case.bad.peers) == len(WHOLE)


@pytest.mark.parametrize("honest", [True, False], ids=["cut", "reframed"])
@shows(CUT_STREAM)
async def test_u24_stream_cut_at_any_byte(entrance: Entrance, honest: bool) -> None:
    """U24: wherever a stream is cut, the whole events before it arrive, and an error after them."""
    case = Case(cutting(honest=honest), streamed=True, behind="alone")

    async def use(call: Call) -> None:
        for offset in range(len(STREAM)):
            judge_stream(await call(case.body), offset, honest=honest)

    await Lab([case]).run(entrance, use)
    assert len(case.bad.peers) == len(STREAM)
