"""From what a provider did to one of our error classes.

Three sources: an exception of the transport, an HTTP status with a body of any shape, and
an error object inside an answer that began with 200. The table is that of the design's
section "Error classes"; replay safety is decided here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from adapters.json_body import parse_answer_body
from adapters.providers.scrub import scrub
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

_MAX_FIELDS = 16
"""Fields of a provider's error object that are kept."""

_OVERLOADED = frozenset({429, 503, 529})
_TRANSIENT = frozenset({408, 425})
# 402 is an empty account and 407 a proxy: like 401 and 403, the operator's to repair.
_REFUSED = frozenset({401, 402, 403, 405, 407})
# 405 and a 404 that is no error of the API mean that `base_url` is not the API's root.

_CONTEXT_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "model_context_window_exceeded"}
)
# OpenAI and vLLM; vLLM with a prompt alone; llama.cpp; Anthropic-style servers.
_CONTEXT_TEXT = re.compile(
    r"maximum context length|longer than the maximum model length"
    r"|exceeds? the (?:available|maximum) context|prompt is too long|context window",
    re.IGNORECASE,
)
_FILTER_CODES = frozenset({
    "content_filter", "content_policy_violation", "moderation_blocked",
    "responsibleaipolicyviolation",
})  # fmt: skip
# OpenAI's account limits; Azure and Gemini say it in words; Anthropic's spending cap is a
# plain rate_limit_error, known by its text alone.
_QUOTA_CODES = frozenset({
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded",
    "billing_error", "spend_limit_exceeded", "access_terminated",
})  # fmt: skip
_QUOTA_TEXT = re.compile(
    r"exceeded your current quota|billing (?:details|hard limit)|spend(?:ing)? (?:limit|cap)"
    r"|usage limits? (?:has|have) been reached|credit balance",
    re.IGNORECASE,
)
_PLAIN_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,63}")
_MODEL_CODES = frozenset({"model_not_found", "model_not_available", "model_not_exist"})
# The second half is what OpenAI and llama.cpp say of a route that they do not have.
_OUR_404_TEXT = re.compile(r"\bmodel\b|invalid url|^file not found$", re.IGNORECASE)

# What the words of an error object mean where no status tells: inside a 200.
_STATUS_BY_WORD: dict[str, int] = {
    "authentication_error": 401, "invalid_api_key": 401, "permission_error": 403,
    "insufficient_quota": 429, "rate_limit_error": 429, "rate_limit_exceeded": 429,
    "requests": 429, "tokens": 429, "ratelimiterror": 429,
    "overloaded_error": 503, "server_busy": 503, "service_unavailable": 503,
    "unavailable_error": 503, "serviceunavailableerror": 503,
    "invalid_request_error": 400, "badrequesterror": 400, "not_found_error": 404,
    "notfounderror": 404, "model_not_found": 404,
    "server_error": 500, "api_error": 500, "internal_server_error": 500,
    "internalservererror": 500, "timeout_error": 504,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reporter:
    """Names the provider in errors, and knows the key that must not stand in them.

    Attributes:
        provider: The provider's name.
        secret: Its key, or None.
    """

    provider: str
    secret: str | None

    def __repr__(self) -> str:
        return f"Reporter({self.provider!r})"

    def broken(self, what: str) -> BrokenError:
        """The provider answered, but `what` is wrong with the answer."""
        return BrokenError(f"provider {self.provider!r} {what}", provider=self.provider)


@dataclass(frozen=True, slots=True)
class _Finding:
    """A provider's error in one shape, whatever it came in; fit for callers and logs."""

    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None
    body: dict[str, Any] | None = None
    has_object: bool = False


def transport_failure(
    error: httpx.RequestError, reporter: Reporter, *, answered: bool
) -> ProviderError:
    """Map an exception of the transport.

    Its text is not used: it may hold addresses. Raise the result outside of the `except`
    block, for the original holds the request, headers and key included.

    Args:
        error: What the transport raised.
        reporter: Whose attempt it was.
        answered: Whether the answer's headers had arrived.
    """
    name = f"provider {reporter.provider!r}"
    if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        return SilentError(f"{name} fell silent", provider=reporter.provider)
    if answered:
        return reporter.broken("cut its answer off")
    if isinstance(error, httpx.RemoteProtocolError) and _MALFORMED in str(error):
        return reporter.broken("answered something that is no HTTP")
    if isinstance(error, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
        return TransientError(
            f"{name} closed the connection without an answer",
            provider=reporter.provider,
            replay=Replay.MAYBE_ACCEPTED,
        )
    if isinstance(error, _NEVER_SENT):
        reason = _connect_reason(error)
        return ConnectError(f"{name} cannot be reached: {reason}", provider=reporter.provider)
    return reporter.broken(f"cannot be spoken to ({type(error).__name__})")


_MALFORMED = "malformed"
"""How our transports tell an answer that cannot be read from none at all: the same call at
the same provider would meet it again."""

_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.ProxyError,
)


def _connect_reason(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, httpx.PoolTimeout):
        return "no free connection in time"
    if isinstance(error, httpx.UnsupportedProtocol):
        return "the scheme of its base_url is not supported"
    text = str(error).lower()
    for words, reason in (
        (("link-local",), "its host name leads to a link-local or metadata address"),
        (("certificate", "ssl", "tls"), "the TLS handshake failed"),
        (("name or service", "getaddrinfo", "name resolution", "resolve", "dns", "nodename"),
         "its host name cannot be resolved"),
        (("refused", "connect call failed"), "the connection was refused"),
    ):  # fmt: skip
        if any(word in text for word in words):
            return reason
    return "the connection failed"


def status_failure(
    status: int,
    raw: bytes,
    reporter: Reporter,
    *,
    retry_after: float | None,
    should_retry: bool | None = None,
) -> ProviderError:
    """Map an answer whose status is not 2xx.

    Args:
        status: The HTTP status.
        raw: The body, or as much of it as was read.
        reporter: Whose attempt it was.
        retry_after: What the headers ask for, seconds.
        should_retry: What the headers say of trying again, or None.
    """
    finding = _normalise(raw, reporter, f"HTTP status {status}")
    failure = _classify(status, finding, reporter, retry_after)
    failure.should_retry = should_retry
    if 300 <= status <= 399:  # noqa: PLR2004 - HTTP's redirections
        # It says itself that the request is to be made elsewhere.
        failure.replay = Replay.NOT_ACCEPTED
    return failure


def error_object_failure(
    error: object, reporter: Reporter, *, retry_after: float | None = None
) -> ProviderError:
    """Map an `error` found inside an answer or a stream that began with 200.

    The provider took the request, so what may pass is marked `maybe_accepted`.

    Args:
        error: The value of `error`: an object or a text.
        reporter: Whose attempt it was.
        retry_after: What the headers ask for, seconds.
    """
    finding = _finding_of(error, reporter, "an error inside its answer")
    failure = _classify(_status_inside(error), finding, reporter, retry_after)
    failure.upstream_status = 200
    if isinstance(failure, TransientError):
        failure.replay = Replay.MAYBE_ACCEPTED
    return failure


def _status_inside(error: object) -> int:
    if not isinstance(error, Mapping):
        return 500
    for key in ("code", "status", "status_code", "http_status"):
        value = error.get(key)
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if type(number) is int and 400 <= number <= 599:  # noqa: PLR2004 - HTTP's error statuses
            return number
    for key in ("code", "type"):
        word = error.get(key)
        if isinstance(word, str) and word.lower() in _STATUS_BY_WORD:
            return _STATUS_BY_WORD[word.lower()]
    return 500


def _classify(
    status: int, finding: _Finding, reporter: Reporter, retry_after: float | None
) -> ProviderError:
    error_type, caller_status = _row(status, finding)
    # A mistake of the caller's is explained in the provider's own words, and no others.
    callers_own = error_type in (CallerError, ContextLengthError, ContentFilterError)
    return error_type(
        finding.message if callers_own else f"provider {reporter.provider!r}: {finding.message}",
        provider=reporter.provider,
        upstream_status=status,
        retry_after=retry_after,
        status=caller_status,
        # Only these are the caller's to read; the others keep the words of their class.
        type=finding.type if error_type in _SPOKEN else None,
        code=finding.code if error_type in _SPOKEN else None,
        param=finding.param,
        body=finding.body,
    )


_SPOKEN = (CallerError, OverloadedError)
"""Whose words reach the caller; what a provider says of our account with it is not among them."""


def _row(status: int, finding: _Finding) -> tuple[type[ProviderError], int | None]:
    """The error class of a status, and the status for the caller (None: the class's own)."""
    if status in _OVERLOADED and _is_quota(finding):
        return ExhaustedError, 429 if status == 429 else 503  # noqa: PLR2004
    if status in _OVERLOADED:
        return OverloadedError, 429 if status == 429 else 503  # noqa: PLR2004
    if status in _TRANSIENT:
        return TransientError, None
    if 500 <= status <= 599:  # noqa: PLR2004 - HTTP's server errors
        return TransientError, status
    if 400 <= status <= 499:  # noqa: PLR2004 - HTTP's client errors
        return _client_row(status, finding)
    return BrokenError, None


def _is_quota(finding: _Finding) -> bool:
    """Whether "not now" means that an account is used up, and not that a moment helps."""
    words = {word.lower() for word in (finding.code, finding.type) if word}
    return bool(words & _QUOTA_CODES) or _QUOTA_TEXT.search(finding.message) is not None


def _client_row(status: int, finding: _Finding) -> tuple[type[ProviderError], int | None]:
    words = {word.lower() for word in (finding.code, finding.type) if word}
    if status in _REFUSED or words & _MODEL_CODES:
        return MisconfiguredError, None
    if status == 404 and (  # noqa: PLR2004
        not finding.has_object or finding.param == "model" or _OUR_404_TEXT.search(finding.message)
    ):
        return MisconfiguredError, None
    if words & _FILTER_CODES:
        return ContentFilterError, None
    if words & _CONTEXT_CODES or _CONTEXT_TEXT.search(finding.message):
        return ContextLengthError, None
    return CallerError, status


def _normalise(raw: bytes, reporter: Reporter, fallback: str) -> _Finding:
    """Read an error body of any shape: OpenAI's, a bare text, FastAPI's `detail`, HTML."""
    try:
        body = parse_answer_body(raw)
    except ValueError:
        # HTML, plain text, cut JSON: nothing in it is meant for the caller of an API.
        return _Finding(fallback)
    for key in ("error", "detail", "message"):
        if body.get(key):
            found = body if key == "message" else body[key]
            return _finding_of(found, reporter, fallback)
    return _Finding(fallback)


def _finding_of(error: object, reporter: Reporter, fallback: str) -> _Finding:
    if isinstance(error, str):
        return _Finding(scrub(error, secret=reporter.secret) or fallback)
    if isinstance(error, list):
        return _Finding(_validation_text(error, reporter) or fallback)
    if not isinstance(error, Mapping):
        return _Finding(fallback)
    inner = error.get("innererror")
    code = _word(error.get("code"), reporter)
    if isinstance(inner, Mapping):  # Azure says only here that a content policy refused
        code = code or _word(inner.get("code"), reporter)
    message = error.get("message")
    text = scrub(message, secret=reporter.secret) if isinstance(message, str) else ""
    return _Finding(
        message=text or fallback,
        type=_plain(_word(error.get("type"), reporter)),
        code=_plain(code),
        param=_word(error.get("param"), reporter),
        body={**_kept_fields(error, reporter), "message": text or fallback},
        has_object=True,
    )


def _validation_text(items: list[Any], reporter: Reporter) -> str:
    """FastAPI's 422: a list of `{"loc": […], "msg": "…"}`; the input in it is not used."""
    texts = []
    for item in items[:4]:
        if isinstance(item, Mapping) and isinstance(item.get("msg"), str):
            where = item.get("loc")
            path = ".".join(str(part) for part in where[:8]) if isinstance(where, list) else ""
            texts.append(f"{path}: {item['msg']}" if path else item["msg"])
    return scrub("; ".join(texts), secret=reporter.secret)


def _word(value: object, reporter: Reporter) -> str | None:
    """A field that is a word. vLLM writes the status as `code`: that says nothing new."""
    if not isinstance(value, str) or not value:
        return None
    return scrub(value[:128], secret=reporter.secret)


def _plain(word: str | None) -> str | None:
    """A type or a code, which are logged: one word of a fixed meaning, never a sentence."""
    return word if word is not None and _PLAIN_WORD.fullmatch(word) else None


def _kept_fields(error: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in list(error.items())[:_MAX_FIELDS]:
        name = scrub(key, secret=reporter.secret)
        if value is None or isinstance(value, (bool, int, float)):
            kept[name] = value
        elif isinstance(value, str):
            kept[name] = scrub(value, secret=reporter.secret)
    return kept
