"""One call to the gateway, through the library or over HTTP, in the same words."""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from engine import GatewayError, Router

# Made once: a client would make one of its own for each call, at the cost of the call itself.
_UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

Entrance = Literal["library", "http"]

CANARY_PROMPT = "canary-prompt-5f21"
CANARY_KEY = "sk-canary-0f9e8d7c6b5a"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": CANARY_PROMPT}]}


@dataclass
class Caller:
    """What one call came to, whichever way it was made.

    Attributes:
        status: HTTP status, also of an exception in the library.
        code: `error.code`, of a stream that broke: of its last event; None without an error.
        text: What was answered.
        attempts: Calls upstream.
        truncated: Whether an error came after parts of the answer.
        error: What was raised, in the library.
        head: The answer's header fields, over HTTP.
        output: All that the caller could read.
    """

    status: int
    code: str | None
    text: str
    attempts: int
    truncated: bool = False
    error: GatewayError | None = None
    head: dict[str, str] = field(default_factory=dict)
    output: str = ""

    @property
    def retry_after(self) -> float | None:
        """Seconds that the caller is told to wait, before the rounding of HTTP."""
        if self.error is not None:
            return self.error.retry_after
        wait = self.head.get("retry-after-ms")
        return None if wait is None else int(wait) / 1000


Call = Callable[[dict[str, Any]], Awaitable[Caller]]
"""Makes one call with this body."""


def library_call(router: Router) -> Call:
    """Calls of the library."""

    async def call(body: dict[str, Any]) -> Caller:
        return await (_stream(router, body) if body.get("stream") else _complete(router, body))

    return call


def http_call(url: str) -> Call:
    """Calls over HTTP."""

    async def call(body: dict[str, Any]) -> Caller:
        return await _ask(url, body)

    return call


async def _complete(router: Router, body: dict[str, Any]) -> Caller:
    try:
        response = await router.complete(body)
    except GatewayError as error:
        return _failed(error)
    return Caller(200, None, response.text, response.attempts)


async def _stream(router: Router, body: dict[str, Any]) -> Caller:
    text = ""
    try:
        async with router.stream(body) as stream:
            try:
                async for piece in stream:
                    text += piece.text
            except GatewayError as error:
                return Caller(
                    200, error.code, text, stream.attempts, truncated=True, error=error,
                    output=_spoken(error),
                )  # fmt: skip
            return Caller(200, None, text, stream.attempts)
    except GatewayError as error:
        return _failed(error)


def _failed(error: GatewayError) -> Caller:
    return Caller(error.status, error.code, "", error.attempts, error=error, output=_spoken(error))


def _spoken(error: BaseException) -> str:
    return f"{error}{error!r}{error.__cause__!r}{vars(error)}"


async def _ask(url: str, body: dict[str, Any]) -> Caller:
    async with (
        httpx.AsyncClient(trust_env=False, verify=_UNUSED, timeout=20) as client,
        client.stream("POST", url, json=body) as response,
    ):
        raw = await response.aread()
    head = {name.lower(): value for name, value in response.headers.items()}
    attempts = int(head.get("x-gateway-attempts", "0"))
    output = f"{head}{raw.decode()}"
    if response.status_code != 200:
        error = json.loads(raw)["error"]
        return Caller(response.status_code, error["code"], "", attempts, head=head, output=output)
    if not body.get("stream"):
        text = json.loads(raw)["choices"][0]["message"]["content"]
        return Caller(200, None, text, attempts, head=head, output=output)
    text, code = _read_events(raw)
    return Caller(200, code, text, attempts, truncated=code is not None, head=head, output=output)


def _read_events(raw: bytes) -> tuple[str, str | None]:
    text, code, ended = "", None, 0
    for part in raw.decode().split("\n\n"):
        if not part:
            continue
        lines = part.split("\n")
        assert all(line.startswith("data: ") for line in lines)
        data = "\n".join(line.removeprefix("data: ") for line in lines)
        assert (ended, code) == (0, None), "nothing comes after the end"
        if data == "[DONE]":
            ended += 1
            continue
        body = json.loads(data)
        if "error" in body:
            code = body["error"]["code"]
            continue
        for choice in body["choices"]:
            text += choice["delta"].get("content") or ""
    # A broken stream has an error and no end marker; a whole one has the marker and no error.
    assert ended == (code is None)
    return text, code
