"""Answers given in front of the routes."""

from __future__ import annotations

import pytest
from starlette.types import Message

from adapters.frontdoor.drain import SERVER_DRAINING
from adapters.frontdoor.refusal import Refusal


async def test_each_refusal_has_an_id_of_its_own() -> None:
    """Also a request that never reached a route can be asked about by its id."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    refusal = Refusal(400, "bad", message="Bad.")
    await refusal.answer(send)
    await refusal.answer(send)
    ids = {dict(m["headers"])[b"x-request-id"] for m in sent if "headers" in m}
    assert len(ids) == 2
    assert all(i.startswith(b"refused-") for i in ids)


async def head_of(refusal: Refusal) -> dict[bytes, bytes]:
    """The header fields of a refusal."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await refusal.answer(send)
    return dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, b"false"), (431, b"false"), (505, b"false"), (408, None), (503, None)],
)
async def test_refusals_say_whether_to_repeat(status: int, expected: bytes | None) -> None:
    """A client that sent something wrong is told not to send it again by itself."""
    fields = await head_of(Refusal(status, "bad", message="Bad."))
    assert fields.get(b"x-should-retry") == expected


async def test_a_draining_server_says_when_to_come_back() -> None:
    """In whole seconds and in milliseconds; the request may be repeated."""
    fields = await head_of(SERVER_DRAINING)
    assert (fields[b"retry-after"], fields[b"retry-after-ms"]) == (b"1", b"1000")
    assert b"x-should-retry" not in fields
