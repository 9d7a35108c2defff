"""Answers given in front of the routes."""

from __future__ import annotations

from starlette.types import Message

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
