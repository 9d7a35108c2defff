"""Every row of the table of error classes, and error bodies of every shape."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from adapters.providers.vllm import VLLMAdapter
from engine.attempt import Attempt
from engine.config import ProviderConfig
from engine.errors import (
    BrokenError,
    CallerError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    ExhaustedError,
    MisconfiguredError,
    OverloadedError,
    ProviderError,
    Replay,
    SilentError,
    TransientError,
)
from engine.operations import ChatRequest

KEY = "sk-canary-0123456789abcdef"
HOST = "canary-host.internal"

# What a table says does not depend on the event loop.
TABLE = pytest.mark.parametrize("anyio_backend", ["asyncio"])

TRANSPORT = [
    (httpx.ConnectError(f"[Errno 111] Connect call failed ('{HOST}')"), ConnectError),
    (httpx.ConnectError("[Errno -2] Name or service not known"), ConnectError),
    (httpx.ConnectError(f"certificate is not valid for '{HOST}'"), ConnectError),
    (httpx.ConnectTimeout("x"), ConnectError),
    (httpx.PoolTimeout("x"), ConnectError),
    (httpx.UnsupportedProtocol("x"), ConnectError),
    (httpx.ReadTimeout("x"), SilentError),
    (httpx.WriteTimeout("x"), SilentError),
    (httpx.ReadError("x"), TransientError),
    (httpx.WriteError("x"), TransientError),
    (httpx.RemoteProtocolError("x"), TransientError),
    (httpx.RemoteProtocolError("the answer is malformed HTTP"), BrokenError),
    (httpx.LocalProtocolError("x"), BrokenError),
]


@TABLE
@pytest.mark.parametrize(("raised", "wanted"), TRANSPORT)
async def test_a_transports_exception_is_mapped(
    wire: Any, raised: Exception, wanted: type[ProviderError]
) -> None:
    """Not sent is `not_accepted`; lost or silent after that is `maybe_accepted`."""
    replay = Replay.NOT_ACCEPTED if wanted is ConnectError else Replay.MAYBE_ACCEPTED
    for streamed in (False, True):
        error = await wire.failure(wire.make(wire.raising(raised)), streamed=streamed)
        assert (type(error), error.replay) == (wanted, replay)


def error_object(message: str = "no", **fields: Any) -> bytes:
    whole = {"message": message, "type": None, "param": None, "code": None, **fields}
    return json.dumps({"error": whole}).encode()


STATUSES: list[tuple[int, bytes, type[ProviderError], int]] = [
    (429, error_object(), OverloadedError, 429),
    (429, error_object(code="insufficient_quota"), ExhaustedError, 429),
    (503, error_object(), OverloadedError, 503),
    (529, error_object(), OverloadedError, 503),
    (500, error_object(), TransientError, 500),
    (501, b"", TransientError, 501),
    (502, b"<html>", TransientError, 502),
    (504, b"", TransientError, 504),
    (408, b"", TransientError, 502),
    (425, b"", TransientError, 502),
    (401, error_object(code="invalid_api_key"), MisconfiguredError, 502),
    (401, b'{"error":"Unauthorized"}', MisconfiguredError, 502),
    (402, b"", MisconfiguredError, 502),
    (403, error_object(), MisconfiguredError, 502),
    (404, error_object(code="model_not_found"), MisconfiguredError, 502),
    (404, error_object("The model `x` does not exist.", code=404), MisconfiguredError, 502),
    (404, error_object("nope", param="model"), MisconfiguredError, 502),
    (400, error_object(code="model_not_found"), MisconfiguredError, 502),
    (404, b'{"detail":"Not Found"}', MisconfiguredError, 502),
    (404, b"<html>404</html>", MisconfiguredError, 502),
    (405, b"", MisconfiguredError, 502),
    (400, error_object(), CallerError, 400),
    (404, error_object("No such file: file-1"), CallerError, 404),
    (409, error_object(), CallerError, 409),
    (413, b"", CallerError, 413),
    (415, b"", CallerError, 415),
    (422, b'{"detail":[{"loc":["body","n"],"msg":"too big","input":9}]}', CallerError, 422),
    (400, error_object(code="context_length_exceeded"), ContextLengthError, 400),
    (400, error_object(type="exceed_context_size_error", code=400), ContextLengthError, 400),
    (400, error_object("The model's maximum context length is 9"), ContextLengthError, 400),
    (413, error_object("prompt is too long: 9 tokens > 5 maximum"), ContextLengthError, 400),
    (400, error_object(code="content_filter"), ContentFilterError, 400),
    (400, error_object(code="content_policy_violation"), ContentFilterError, 400),
    (400, error_object(innererror={"code": "ResponsibleAIPolicyViolation"}), ContentFilterError,
     400),
    (302, b"", BrokenError, 502),
    (304, b"", BrokenError, 502),
]  # fmt: skip


@TABLE
@pytest.mark.parametrize(("status", "raw", "wanted", "for_caller"), STATUSES)
async def test_a_status_is_mapped(
    wire: Any, status: int, raw: bytes, wanted: type[ProviderError], for_caller: int
) -> None:
    """Each row of the table, streamed or not."""
    for streamed in (False, True):
        handle = wire.body([raw], kind="application/json", status=status)
        error = await wire.failure(wire.make(handle), streamed=streamed)
        assert type(error) is wanted
        assert error.status == for_caller
        assert error.upstream_status == status
        # A redirection says itself that nothing was done.
        refused = 300 <= status <= 399
        assert error.replay is (Replay.NOT_ACCEPTED if refused else wanted.default_replay)
        assert error.message


async def test_the_callers_mistake_is_told_in_full(wire: Any) -> None:
    """Type, code, param and text of a 400 are the provider's own."""
    raw = error_object("'n' must be 1", type="invalid_request_error", code="bad_n", param="n")
    error = await wire.failure(wire.make(wire.body([raw], kind="application/json", status=400)))
    assert (error.message, error.type, error.code, error.param) == (
        "'n' must be 1",
        "invalid_request_error",
        "bad_n",
        "n",
    )
    assert error.body == json.loads(raw)["error"]


LEAKS = f"key {KEY} at https://{HOST}/v1/x or {HOST}:8000 (10.1.2.3:99) in /srv/app/main.py"
SHAPES = [
    json.dumps({"error": {"message": LEAKS, "type": LEAKS, "code": LEAKS, "param": LEAKS}}),
    json.dumps({"error": {"message": {"nested": LEAKS}}}),
    json.dumps({"error": {"message": LEAKS, LEAKS: LEAKS, "deep": {"x": LEAKS}}}),
    json.dumps({"error": LEAKS}),
    json.dumps({"detail": LEAKS}),
    json.dumps({"detail": [{"loc": ["body", LEAKS], "msg": LEAKS, "input": KEY}]}),
    json.dumps({"message": LEAKS, "object": "error", "code": 400}),
    json.dumps({"error": [LEAKS]}),
    json.dumps([LEAKS]),
    json.dumps(LEAKS),
    f"<html><body>{LEAKS}</body></html>",
    LEAKS,
    "",
    '{"error": {"message": "cut',
    '{"error": null}',
    '{"error": 7}',
]


@TABLE
@pytest.mark.parametrize("raw", SHAPES)
async def test_error_bodies_of_every_shape_are_made_clean(wire: Any, raw: str) -> None:
    """Whatever the body, there is a text, and no key, address or path in it."""
    for status in (400, 401, 404, 429, 500, 302):
        handle = wire.body([raw.encode()], kind="application/json", status=status)
        error = await wire.failure(wire.make(handle))
        assert 0 < len(error.message) <= 1_100
        for canary in ("10.1.2.3", "/srv/app", "canary"):
            assert canary not in f"{error} {error.__dict__}"


async def test_a_huge_error_body_is_bounded(wire: Any) -> None:
    """Sixty-four kilobytes are looked at, one is kept, and the connection is cut."""
    body = wire.Parts(b'{"error":"' + b"x" * 65_536 for _ in range(1_000_000))
    error = await wire.failure(wire.make(lambda _: httpx.Response(500, stream=body)))
    assert type(error) is TransientError
    assert body.closed


def test_an_error_body_that_hangs_does_not_hide_the_status(virtual_time: Any) -> None:
    """After two seconds the status alone is told."""

    class Hanging(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b'{"error":'
            await anyio.sleep_forever()

    config = ProviderConfig(name="up", type="vllm", base_url="http://h/v1")
    transport = httpx.MockTransport(lambda _: httpx.Response(429, stream=Hanging()))
    request = ChatRequest("m", [])

    async def main() -> None:
        adapter = VLLMAdapter(config, transport=transport)
        with pytest.raises(OverloadedError):
            await adapter.send(Attempt(request, "m", "r", timeouts=config.timeouts))
        assert anyio.current_time() < 10

    virtual_time(main)


@TABLE
@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "99999"}, 300.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
async def test_retry_after_is_read(wire: Any, headers: dict[str, str], wanted: float) -> None:
    """The hint is told in seconds, whatever it came as."""
    error = await wire.failure(wire.make(lambda _: httpx.Response(429, headers=headers)))
    assert error.retry_after == wanted
