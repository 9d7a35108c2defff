"""Rules S36, S37, S39, S40: a key and a prompt go through every fault, and are found nowhere.

All faults run side by side in one gateway, and everything that it says is gathered: log
lines in both forms, records of the `logging` module with their tracebacks, spans, metrics,
the status, the stories of the requests, answers with their headers, reprs, and what the
exceptions of the library hold, with all that is chained to them.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from canary_lab import Ears, EveryRecord, assert_clean, forms, play
from fault_calls import CANARY_KEY, CANARY_PROMPT, CHAT, Entrance
from fault_lab import Fault, Seen
from raw_upstream import DONE, JSON_HEAD, SSE_HEAD, Peer, Script, chunk, event

from adapters.frontdoor.app import create_app
from adapters.providers.scrub import MAX_MESSAGE, scrub
from engine import (
    Attempt,
    BaseProvider,
    ChunkSource,
    GatewayConfig,
    GatewayError,
    Operation,
    ProviderConfig,
    ProviderRegistry,
    Response,
    Router,
)

FAULT_SUITE = Path(__file__).parents[1] / "faults"
KEY_FORMS, PROMPT_FORMS = forms(CANARY_KEY), forms(CANARY_PROMPT)
HALVES = (CANARY_KEY[:12], CANARY_KEY[12:])
BASE64 = base64.b64encode(f"Bearer {CANARY_KEY}".encode()).decode()


# ── upstreams that say what they were sent ───────────────────────────────────────


def say(
    status: bytes, body: Any, *, head: bytes = b"", kind: bytes = b"application/json"
) -> Script:
    """Answer every request with this body, as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def play(peer: Peer) -> None:
        while await peer.read_request():
            await peer.answer(data, status=status, head=head, kind=kind)

    return play


def send(*parts: bytes) -> Script:
    """Send bytes and close."""

    async def play(peer: Peer) -> None:
        await peer.read_request()
        for part in parts:
            await peer.send(part)

    return play


def send_event(*parts: bytes) -> Script:
    """Stream these events to a whole end of the body, or answer them as JSON."""

    async def play(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(SSE_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")

    return play


def error(text: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": text, **more}}


def sse_error(text: str) -> bytes:
    return b"data: %b\n\n" % json.dumps(error(text, type="server_error")).encode()


def echoes(word: str) -> dict[str, Script]:
    """Upstreams that repeat `word` wherever an upstream can say something."""
    told = f"Incorrect API key provided: {word}. You can find it at https://h.example/{word}"
    raw = word.encode()
    return {
        **{f"in a {status}": say(b"%d No" % status,
                                 error(told, code=f"c-{word}", type=word, param=word))
           for status in (400, 401, 403, 404, 408, 413, 422, 429, 500, 502, 503, 529)},
        "as plain text": say(b"500 No", told.encode(), kind=b"text/plain"),
        "as HTML": say(b"502 No", b"<h1>%b</h1>" % raw, kind=b"text/html"),
        "as HTML with 200": say(b"200 OK", b"<h1>%b</h1>" % raw, kind=b"text/html"),
        "as a detail": say(b"422 No", {"detail": [{"loc": [word], "msg": told, "input": word}]}),
        "as a bare text": say(b"400 No", {"error": told}),
        "as a message": say(b"400 No", {"message": told}),
        "deep inside": say(b"400 No",
                           error("no", metadata={"raw": word}, innererror={"code": word})),
        "as names of fields": say(b"400 No", error("no", **{word: word, f"x{word}": 1})),
        "inside of 200": say(b"200 OK", error(told)),
        "in the reason": say(b"500 %b" % raw, b"{}"),
        "in headers": say(b"500 No", b"{}", head=b"x-key: %b\r\nretry-after: %b\r\n" % (raw, raw)),
        "in a redirect": say(b"302 No", b"", head=b"location: http://127.0.0.1:1/%b\r\n" % raw),
        "in the type": say(b"200 OK", b"{}", kind=raw),
        "in the encoding": say(b"200 OK", b"{}", head=b"content-encoding: %b\r\n" % raw),
        "in the status line": send(b"HTTP/1.1 %b\r\n\r\n" % raw),
        "in a broken header": send(JSON_HEAD + b"%b\r\n\r\n" % raw),
        "instead of HTTP": send(raw + b"\r\n\r\n"),
        "in a chunk's size": send(SSE_HEAD + b"%b\r\n" % raw),
        "in cut JSON": say(b"200 OK", b'{"choices": "%b' % raw),
        "in JSON of no use": say(b"200 OK", {"choices": word, "id": word}),
        "in a first event": send_event(sse_error(told)),
        "in a later event": send_event(event("we"), sse_error(told), DONE),
        "in a broken event": send_event(event("we"), b"data: {%b\n\n" % raw),
        "in an event's name": send_event(b"event: %b\ndata: nothing\n\n" % raw),
    }  # fmt: skip


KEY_SPELLINGS = {
    "base64": BASE64,
    "two halves": f"{HALVES[0]} and {HALVES[1]}",
    "url": "%" + CANARY_KEY.encode().hex("%"),
    "hexadecimal": CANARY_KEY.encode().hex(),
    "upper case": CANARY_KEY.upper(),
    "cut": CANARY_KEY[:-3],
}
NOTHING = Seen()


def fault(name: str, script: Script) -> Fault:
    return Fault("X0", name, script, NOTHING, NOTHING, timeout=1)


OWN = [
    *(fault(f"key {where}", script) for where, script in echoes(CANARY_KEY).items()),
    *(
        fault(f"key as {spelled} in {status}", say(b"%d No" % status, error(f"no: {word}")))
        for spelled, word in KEY_SPELLINGS.items()
        for status in (400, 500)
    ),
]
SENTENCE = "canary prompt 5f21 that nobody else may read"
"""A prompt of several words, as prompts are."""
SENTENCE_FORMS = forms(SENTENCE)
ECHOES_OF_THE_PROMPT = [
    replace(
        fault(f"prompt {where}", script),
        body={"messages": [{"role": "user", "content": SENTENCE}]},
    )
    for where, script in echoes(SENTENCE).items()
]


TOO_LARGE = {"u27_stream_without_an_end"}
"""Played by the fault suite, which looks for both canaries, too; here it would take a minute."""


def catalogue() -> list[Fault]:
    """The scripted faults of the fault suite that need nothing but a script."""
    found: dict[str, Fault] = {}
    for path in sorted(FAULT_SUITE.glob("test_upstream_*.py")):
        spec = importlib.util.spec_from_file_location(f"canary_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for each in getattr(module, "FAULTS", []):
            plain = each.tls is None and "127.0.0.1" in each.address and not each.warm
            if plain and len(str(each.body)) < 10_000 and each.slug not in TOO_LARGE:
                found[each.slug] = each
    return list(found.values())


# ── the tests ────────────────────────────────────────────────────────────────────


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Ears]:
    """Everything that is said, from the most talkative level on."""
    monkeypatch.setenv("FAULT_LAB_KEY", CANARY_KEY)
    heard, root = Ears(), logging.getLogger()
    handlers, level = [EveryRecord(heard), *heard.library_logs], root.level
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield heard
    root.setLevel(level)
    for handler in handlers:
        root.removeHandler(handler)
    printed = capfd.readouterr()
    assert_clean("printed", printed.out + printed.err, KEY_FORMS)
    assert_clean("printed", printed.out + printed.err, PROMPT_FORMS)


@pytest.fixture(params=["library", "http"])
def entrance(request: pytest.FixtureRequest) -> str:
    """The way in which calls are made."""
    way: str = request.param
    return way


TO_THE_CALLER = {"answers", "exceptions"}
EVERYWHERE = {"status", "stories", "metrics", "reprs", "spans", "json lines", "pretty lines"}


def assert_nothing_told(ears: Ears, entrance: Entrance, *, prompt_may_return: bool = False) -> None:
    """Neither canary stands in anything that was heard, and something was heard everywhere."""
    heard = EVERYWHERE | {"exceptions" if entrance == "library" else "request record", "answers"}
    assert not {where for where in heard if not "".join(ears.said.get(where, []))}
    for where, texts in ears.said.items():
        for text in texts:
            assert_clean(where, text, KEY_FORMS)
            if not (prompt_may_return and where in TO_THE_CALLER):
                assert_clean(where, text, PROMPT_FORMS)
                assert_clean(where, text, SENTENCE_FORMS)


async def test_s36_no_fault_of_the_catalogue_tells_a_prompt_or_a_key(
    entrance: Entrance, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with an upstream: nothing of either, in no spelling."""
    faults = catalogue()
    assert len(faults) >= 15
    await play(faults, entrance, ears, monkeypatch)
    assert_nothing_told(ears, entrance)


async def test_s36_a_prompt_that_is_echoed_reaches_nobody_but_its_caller(
    entrance: Entrance, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider's words may quote the prompt: to whoever wrote it, and to no operator."""
    await play(ECHOES_OF_THE_PROMPT, entrance, ears, monkeypatch)
    assert_nothing_told(ears, entrance, prompt_may_return=True)


async def test_s37_a_key_that_is_echoed_reaches_nobody(
    entrance: Entrance, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, cut, halved, encoded; in a body, a header, a status line, an event."""
    assert len(OWN) >= 15
    await play(OWN, entrance, ears, monkeypatch)
    assert_nothing_told(ears, entrance)


@pytest.mark.parametrize("spelling", KEY_FORMS)
@pytest.mark.parametrize("around", ["no: {}", "no:{}!", "{}", "x" * 2_000 + "{}", "a{0}b{0}c"])
def test_s39_the_scrubber_knows_every_spelling(spelling: str, around: str) -> None:
    """What was sent as a key is taken out of a provider's text, wherever it stands."""
    if spelling in {"backwards", "escaped"}:
        return  # no server writes it like this, and JSON's own escapes are read before
    text = scrub(around.format(KEY_FORMS[spelling]), secret=CANARY_KEY)
    assert_clean("scrubbed", text, KEY_FORMS)
    assert len(text) <= MAX_MESSAGE


@pytest.mark.parametrize(
    "text",
    ["Rate limit reached for requests", "max_tokens is too large: 5000", "The model is overloaded"],
)
def test_s39_the_scrubber_leaves_plain_words(text: str) -> None:
    """A message without secrets stays as it is."""
    assert scrub(text, secret=CANARY_KEY) == text


async def test_s39_errors_have_a_schema_a_code_and_no_traceback(
    entrance: Entrance, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 1 KiB of message, an id to ask about, and no line of code."""
    long = say(b"400 No", error("word " * 5_000))
    await play([fault("a long text", long), *OWN[:20]], entrance, ears, monkeypatch)
    for answer in ears.said["answers"]:
        assert "Traceback" not in answer
        assert ".py" not in answer
        assert len(answer) < 4_000


# ── S40: an adapter that fails with secrets in its hands ─────────────────────────


class Careless(BaseProvider):
    """Raises with a key and a prompt in its locals, in its text, and in what it is chained to."""

    operations = frozenset(Operation)

    def stream(self, attempt: Attempt) -> ChunkSource:
        """Fail at once."""
        raise RuntimeError(CANARY_KEY, attempt.request.body)

    async def send(self, attempt: Attempt) -> Response:
        """Fail."""
        authorization = f"Bearer {CANARY_KEY}"
        try:
            raise ValueError(authorization, attempt.request.body)
        except ValueError as cause:
            msg = f"{authorization} was refused for {CANARY_PROMPT}"
            raise RuntimeError(msg, {"authorization": authorization}) from cause


async def test_s40_an_exception_of_an_adapter_tells_nothing_of_what_it_holds(ears: Ears) -> None:
    """Operators see its class; callers see that something failed."""
    config = GatewayConfig.model_validate({"providers": [{"name": "careless", "type": "mock"}]})
    registry = ProviderRegistry()
    registry.register_provider("careless", Careless(ProviderConfig(name="careless", type="mock")))
    router = Router(config, registry=registry, tracer_provider=ears.tracer_provider)
    app = create_app(config, router=router, request_log=ears, meter_provider=ears.meter_provider)
    assert app is not None
    async with router:
        for body in ({"model": "any", **CHAT}, {"model": "any", "stream": True, **CHAT}):
            with pytest.raises(GatewayError) as caught:
                if "stream" in body:
                    async with router.stream(body):
                        pass
                else:
                    await router.complete(body)
            ears.hear("exceptions", f"{caught.value}{caught.value!r}{caught.value.message}")
        ears.look_at(router)
    ears.close()
    for where, texts in ears.said.items():
        for text in texts:
            assert_clean(where, text, KEY_FORMS)
            assert_clean(where, text, PROMPT_FORMS)
