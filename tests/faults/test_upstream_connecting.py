"""Faults on the way to an upstream, and before it says anything."""

from __future__ import annotations

import asyncio  # what stands in for the system's resolver is asyncio's by nature
import pathlib
import socket
import ssl
import warnings
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from fault_calls import CHAT, Call, Entrance
from fault_lab import COMPLETED, COMPLETED_AND_CUT, SOON, Case, Fault, Lab, Seen, make_tests
from fault_table import Row, shows
from raw_upstream import WHOLE, Peer, be_well, refusing, swallowing

from adapters.transports import http1_connecting, http1_pool, tls

HERE = pathlib.Path(__file__).parent
EXPIRED = str(HERE / "expired.pem")
LOCALHOST = str(HERE.parent / "adapters" / "transports" / "localhost.pem")

CONNECT = Seen("connect", "not_accepted", 502, "provider_unreachable")
LOST = Seen("transient", "maybe_accepted", 502, "provider_error")
LARGE = {"padding": "x" * 3_000_000}
TOO_LARGE_FOR_THE_KERNEL = {"padding": "x" * 12_000_000}


# ── what stands in for the system ────────────────────────────────────────────────


async def look_up(host: str, port: int) -> Sequence[Any]:
    """Answer for some names as a resolver would that is in trouble, and ask for the others."""
    match host:
        case "unknown.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        case "failing.test":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        case "empty.test":
            return []
        case "turned.test":
            host = "169.254.169.254"
        case "slow.test":
            await anyio.sleep(10)
        case _:
            pass
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


@pytest.fixture(autouse=True)
def trust_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the certificates of these tests alone, and resolve names as above."""
    context = ssl.create_default_context(cafile=LOCALHOST)
    context.load_verify_locations(EXPIRED)
    monkeypatch.setattr(tls, "_context", lambda: context)
    monkeypatch.setattr(http1_connecting, "_ask_the_system", look_up)


def certified(pem: str, *, old: bool = False) -> ssl.SSLContext:
    """The context of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    if old:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def of_a_stranger() -> ssl.SSLContext:
    """The context of a server whose certificate nobody vouches for."""
    return certified(str(HERE / "stranger.pem"))


# ── scripts ──────────────────────────────────────────────────────────────────────


async def never(peer: Peer) -> None:
    """Nobody gets here."""
    raise AssertionError


async def close_unread(peer: Peer) -> None:
    """Close without having read anything."""


async def read_and_close(peer: Peer) -> None:
    """Read the whole request, and close without a word."""
    await peer.read_request()


async def read_and_reset(peer: Peer) -> None:
    """Read the whole request, and reset the connection."""
    await peer.read_request()
    await peer.reset()


async def reset_while_sent(peer: Peer) -> None:
    """Reset after the head, while the body is on its way."""
    await peer.read_head()
    await peer.reset()


async def refuse_while_sent(peer: Peer) -> None:
    """Refuse after the head, and read no more of the body until the gateway has left."""
    await peer.read_head()
    await peer.answer(b'{"error":{"message":"too large"}}', status=b"413 Too Large")
    await anyio.sleep(0.05)
    await peer.hold()


async def hold_hello(peer: Peer) -> None:
    """Say nothing to a TLS hello."""
    await peer.hold()


async def reset_hello(peer: Peer) -> None:
    """Reset instead of a TLS handshake."""
    await peer.stream.receive()
    await peer.reset()


async def answer_hello_in_plain(peer: Peer) -> None:
    """Speak HTTP where TLS was expected."""
    await peer.stream.receive()
    await peer.answer(WHOLE)
    await peer.hold()


async def close_when_used_again(peer: Peer) -> None:
    """Answer once and keep the connection; close it when the next request has come."""
    if peer.number:
        await peer.read_request()
        return
    await peer.read_request()
    await peer.answer_well(b"server: fake\r\n")
    await peer.read_request()


async def close_while_idle(peer: Peer) -> None:
    """Answer one request a connection, promise to keep it, and close it at once."""
    await peer.read_request()
    await peer.answer_well(b"server: fake\r\n")


HTTPS = "https://localhost:{port}/v1"

FAULTS = [
    Fault("U1", "connection refused", never, CONNECT, CONNECT, door=refusing),
    Fault("U2", "unknown host name", never, CONNECT, CONNECT, address="http://unknown.test:{port}/v1"),
    Fault("U2", "resolver fails", never, CONNECT, CONNECT, address="http://failing.test:{port}/v1"),
    Fault("U2", "host name without an address", never, CONNECT, CONNECT,
          address="http://empty.test:{port}/v1"),
    Fault("U2", "resolver hangs", never, CONNECT, CONNECT, address="http://slow.test:{port}/v1",
          timeouts={"connect": SOON},
          note="The look-up spends the limit `timeouts.connect`, together with TCP and TLS."),
    Fault("U3", "host name turns into a metadata address", never, CONNECT, CONNECT,
          address="http://turned.test:{port}/v1", note="Link-local and metadata addresses are "
          "refused when the connection is made; private ones are the normal case for vLLM and "
          "llama.cpp, and stay allowed."),
    Fault("U4", "connects are swallowed", never, CONNECT, CONNECT, door=swallowing,
          timeouts={"connect": SOON},
          note="While a provider is unproven, `ejection.unproven_concurrency` (10) bounds how many "
          "requests can meet it."),
    Fault("U5", "certificate for another name", be_well, CONNECT, CONNECT,
          address="https://127.0.0.1:{port}/v1", tls=lambda: certified(LOCALHOST),
          note="Never a fallback to plain text. The message says that the TLS handshake failed."),
    Fault("U5", "certificate has expired", be_well, CONNECT, CONNECT, address=HTTPS,
          tls=lambda: certified(EXPIRED)),
    Fault("U5", "certificate nobody vouches for", be_well, CONNECT, CONNECT, address=HTTPS,
          tls=of_a_stranger),
    Fault("U5", "TLS 1.1 only", be_well, CONNECT, CONNECT, address=HTTPS,
          tls=lambda: certified(LOCALHOST, old=True)),
    Fault("U5", "TLS handshake hangs", hold_hello, CONNECT, CONNECT, address=HTTPS,
          timeouts={"connect": SOON}),
    Fault("U5", "reset in the TLS handshake", reset_hello, CONNECT, CONNECT, address=HTTPS),
    Fault("U5", "plain HTTP where TLS was expected", answer_hello_in_plain, CONNECT, CONNECT,
          address=HTTPS),
    Fault("U6", "close before anything was read", close_unread, LOST, LOST,
          note="The request had left: nothing tells whether a proxy in between has passed it on."),
    Fault("U7", "close without an answer", read_and_close, LOST, LOST),
    Fault("U8", "reset after the request was read", read_and_reset, LOST, LOST),
    Fault("U9", "reset while a large body is sent", reset_while_sent, LOST, LOST, body=LARGE),
    Fault("U10", "refusal while a large body is sent", refuse_while_sent,
          Seen("caller", status=413, elsewhere=False), Seen("caller", status=413, elsewhere=False),
          body=TOO_LARGE_FOR_THE_KERNEL, note="The rest of the body is not sent."),
    Fault("U40", "close when a kept connection is used again", close_when_used_again, LOST, LOST,
          warm=1, note="Not repeated behind the scenes: the request had left. Kept connections are "
          "dropped after 15 s of idling, before common servers close them."),
    Fault("U40", "close of an idle kept connection", close_while_idle, COMPLETED_AND_CUT,
          COMPLETED_AND_CUT, warm=1),
]  # fmt: skip

DOES_NOT_APPLY = {
    "U45": "no HTTP/2 is spoken to upstreams, so there are no GOAWAY, SETTINGS and stream resets.",
}

globals().update(make_tests(FAULTS))


@shows(Row(
    "U52", "addresses or certificates change", "the answer", "not needed", "the answer",
    "a success", "Names are kept for 10 s and connections used for at most 5 minutes, so a "
    "provider that moves is followed within that time, and at once when connecting fails.",
))  # fmt: skip
async def test_u52_a_moved_provider_is_followed(
    entrance: Entrance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U52: a connection that is old is not used again, and a new one goes to the new address."""
    monkeypatch.setattr(http1_pool, "MAX_AGE_SECONDS", 0.0)
    monkeypatch.setattr(http1_connecting, "NAMES_KEPT_SECONDS", 0.0)
    fault = Fault("U52", "moves", be_well, COMPLETED, None, address="http://moving.test:{port}/v1")
    case = Case(fault, streamed=False, behind="alone")
    ports: list[int] = []

    async def move(_host: str, _port: int) -> Sequence[Any]:
        address = ("127.0.0.1", ports.pop(0))
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]

    monkeypatch.setattr(http1_connecting, "_ask_the_system", move)

    async def use(call: Call) -> None:
        ports.extend([case.bad.port, case.well.port])
        for requests in ((1, 0), (1, 1)):
            assert (await call({"model": case.name, **CHAT})).text == "well"
            assert (case.bad.requests, case.well.requests) == requests

    await Lab([case]).run(entrance, use)
