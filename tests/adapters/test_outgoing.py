"""What goes into an upstream request beside its body: URLs, keys, hints, clean texts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.providers.outgoing import check_base_url, is_trace_header, plain_id, read_key
from adapters.providers.retry_after import MAX_RETRY_AFTER, parse_retry_after
from adapters.providers.scrub import MAX_MESSAGE, scrub
from engine.config import ProviderConfig
from engine.errors import ConfigurationError

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


def seconds(**headers: str) -> float | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_retry_after(named, now=lambda: NOON)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", 0.0),
        ("3", 3.0),
        (" 3 ", 3.0),
        ("2.5", 2.5),
        ("2.", 2.0),
        ("301", MAX_RETRY_AFTER),
        ("99999999999999", MAX_RETRY_AFTER),
        ("9" * 400, None),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("inf", None),
        ("nan", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        ("Wed, 01 Jul 2026 12:00:30 GMT", 30.0),
        ("Wednesday, 01-Jul-26 12:00:30 GMT", 30.0),
        ("Wed Jul  1 12:00:30 2026", 30.0),
        ("Wed, 01 Jul 2026 11:00:00 GMT", 0.0),
        ("Fri, 01 Jul 2039 12:00:00 GMT", MAX_RETRY_AFTER),
        ("Wed, 01 Jul 99999 12:00:30 GMT", None),
        ("Wed, 40 Jul 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after_is_read_as_the_standard_says(text: str, wanted: float | None) -> None:
    """Seconds with or without a fraction, or a date; anything else says nothing."""
    assert seconds(retry_after=text) == wanted


def test_milliseconds_go_first() -> None:
    """`retry-after-ms` is the finer hint, unless it is garbage."""
    assert seconds(retry_after_ms="250", retry_after="9") == 0.25
    assert seconds(retry_after_ms="x", retry_after="9") == 9.0
    assert seconds(retry_after_ms="999999999") == MAX_RETRY_AFTER


def test_a_date_is_compared_with_the_providers_own_clock() -> None:
    """A provider whose clock is an hour wrong is understood by its `Date`."""
    headers = {"retry_after": "Wed, 01 Jul 2026 13:00:05 GMT"}
    assert seconds(**headers, date="Wed, 01 Jul 2026 13:00:00 GMT") == 5.0
    assert seconds(**headers, date="garbage") == MAX_RETRY_AFTER


@given(st.text(), st.text())
def test_no_hint_raises(first: str, second: str) -> None:
    """Whatever stands there gives nothing, or a number within bounds."""
    found = seconds(retry_after=first, date=second, retry_after_ms=second)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    "text",
    [
        "https://api.openai.com/v1",
        "http://127.0.0.1:8000/v1",
        "http://[::1]:8000/v1",
        "HTTP://host",
        "http://my_host:1/a/b-c/~d",
        "https://xn--bcher-kva.example/v1",
    ],
)
def test_good_base_urls_are_taken(text: str) -> None:
    """Names, addresses, ports and paths; a slash at the end makes no difference."""
    assert check_base_url(text) == check_base_url(f"{text}/") == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("host/v1", "http"),
        ("ftp://host", "http"),
        ("http://", "host"),
        ("http:///v1", "host"),
        ("http://[zz]/", "host"),
        ("http://host:0", "host"),
        ("http://host:65536", "host"),
        ("http://999.1.1.1", "host"),
        ("https://user:hunter2@host/v1", "password"),
        ("https://host/v1?key=hunter2", "query"),
        ("https://host/v1#hunter2", "fragment"),
        ("https://host/v1\r\nx: hunter2", "blanks"),
        ("https://host /v1", "blanks"),
        ("https://h\u00f6st/v1", "ASCII"),
        ("https://host/\x00", "blanks"),
    ],
)
def test_bad_base_urls_are_refused(text: str, words: str) -> None:
    """Each says what is wrong, and none repeats what may be a password."""
    with pytest.raises(ValueError, match=words) as caught:
        check_base_url(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["q\nz", "q z", "q\x00z", "kéy", "q\tz"])
def test_a_key_that_no_header_can_carry_is_refused(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text names the variable and not the key."""
    config = ProviderConfig(name="p", type="vllm", api_key_env="BAD_KEY")
    if "\x00" in key:
        monkeypatch.setattr("os.environ", {"BAD_KEY": key})
    else:
        monkeypatch.setenv("BAD_KEY", key)
    with pytest.raises(ConfigurationError, match="BAD_KEY") as caught:
        read_key(config, default_env=None, required=False)
    assert key not in str(caught.value)


def test_blanks_around_a_key_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line break at the end comes from files, not from people."""
    monkeypatch.setenv("SOME_KEY", " key\n")
    config = ProviderConfig(name="p", type="vllm", api_key_env="SOME_KEY")
    assert read_key(config, default_env=None, required=True) == "key"


@given(st.text(max_size=300))
def test_an_id_becomes_a_plain_header(request_id: str) -> None:
    """No id can end its header or grow without bound."""
    plain = plain_id(request_id)
    assert len(plain) <= 128
    assert plain.isascii()
    assert plain.isprintable()


@pytest.mark.parametrize("name", ["Authorization", "HOST", "cookie", "a b", "", "x:y", "x\n"])
def test_tracing_cannot_replace_our_headers(name: str) -> None:
    """Reserved and impossible names are left out."""
    assert not is_trace_header(name, "v")


def test_trace_headers_pass() -> None:
    """What a propagator writes is sent, unless HTTP cannot carry it."""
    assert is_trace_header("traceparent", "00-a-b-01")
    assert not is_trace_header("tracestate", "a\r\nb")
    assert not is_trace_header("baggage", "é")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("key sk-abc123def456 is bad", "key [key] is bad"),
        ("Incorrect API key: sk-ab***yz", "Incorrect API key: [key]"),
        ("header 'Bearer abc.def'", "header 'Bearer [key]'"),
        ("api_key=abcdef123", "api_key=[key]"),
        ("see https://host.example/x?y=1.", "see [address]"),
        ("connect to 10.0.0.1:80 failed", "connect to [address] failed"),
        ("at fe80::1 and [::1]:8000", "at [address] and [address]"),
        ("gpu-3.svc.internal is down", "[address] is down"),
        ("http on localhost:8000", "http on [address]"),
        ("in /srv/app/main.py line 3", "in [path] line 3"),
        ("C:\\Users\\me\\x.py", "[path]"),
        ("a\r\nb\x00c", "a b c"),
    ],
)
def test_keys_addresses_and_paths_are_taken_out(text: str, wanted: str) -> None:
    """What could help somebody else is gone, the words stay."""
    assert scrub(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "The model `meta-llama/Llama-3.1-8B-Instruct` does not exist.",
        "max_tokens must be at least 1, at 12:5 of and/or 3.5 m/s",
        "messages.0.content: too long; this model's maximum is 4096",
        "[{'type': 'missing', 'loc': ('body', 'n')}]",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    """Model names, field paths, ratios and numbers are no addresses."""
    assert scrub(text) == text


@given(st.text(max_size=5_000))
def test_scrubbing_is_bounded_and_on_one_line(text: str) -> None:
    """Any text comes out short and printable."""
    clean = scrub(text, secret="hunter2")
    assert len(clean) <= MAX_MESSAGE
    assert clean.isprintable()
    assert "hunter2" not in clean


def test_the_key_itself_is_taken_out() -> None:
    """Also when it looks like no key at all."""
    assert scrub("you sent plainword!", secret="plainword") == "you sent [key]!"


@pytest.mark.parametrize("unit", ["a.", "1:", "a-", "/a", "::", "Bearer ", "sk-", "a.b:", "x.x-"])
def test_hostile_texts_take_no_time(unit: str) -> None:
    """No pattern goes over a long text again and again."""
    assert len(scrub(unit * 100_000)) <= MAX_MESSAGE
