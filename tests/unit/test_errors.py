"""The tree of errors: status, type, code, class and replay mark of each."""

import pytest

import engine
from engine import (
    ActorCrashedError,
    AdapterError,
    BrokenError,
    CallerError,
    ConfigurationError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    DeadlineExceededError,
    ErrorClass,
    GatewayError,
    InvalidRequestError,
    MailboxFullError,
    MisconfiguredError,
    ModelNotFoundError,
    NoProviderAvailableError,
    OverloadedError,
    ProviderError,
    RejectedError,
    Replay,
    RouterClosedError,
    SilentError,
    StreamTruncatedError,
    TransientError,
    UnsupportedOperationError,
)

NOT, MAYBE, YES = Replay.NOT_ACCEPTED, Replay.MAYBE_ACCEPTED, Replay.ACCEPTED

ROWS: list[tuple[type[ProviderError], ErrorClass, Replay, int]] = [
    (ConnectError, ErrorClass.CONNECT, NOT, 502),
    (OverloadedError, ErrorClass.OVERLOADED, NOT, 503),
    (TransientError, ErrorClass.TRANSIENT, NOT, 502),
    (SilentError, ErrorClass.SILENT, MAYBE, 504),
    (BrokenError, ErrorClass.BROKEN, MAYBE, 502),
    (AdapterError, ErrorClass.BROKEN, MAYBE, 502),
    (ActorCrashedError, ErrorClass.BROKEN, MAYBE, 502),
    (MisconfiguredError, ErrorClass.MISCONFIGURED, NOT, 502),
    (CallerError, ErrorClass.CALLER, NOT, 400),
    (ContextLengthError, ErrorClass.CONTEXT_LENGTH, NOT, 400),
    (ContentFilterError, ErrorClass.CONTENT_FILTER, YES, 400),
    (StreamTruncatedError, ErrorClass.AFTER_COMMIT, YES, 502),
]


@pytest.mark.parametrize(("error_type", "error_class", "replay", "status"), ROWS)
def test_provider_errors_know_their_row(
    error_type: type[ProviderError], error_class: ErrorClass, replay: Replay, status: int
) -> None:
    """Each failure of an attempt has its class, its replay mark and its HTTP status."""
    error = error_type("text")
    assert (error.error_class, error.replay, error.status) == (error_class, replay, status)
    assert error.message == "text"


def test_every_error_class_has_an_error() -> None:
    """The table leaves no class without an exception."""
    assert {row[1] for row in ROWS} == set(ErrorClass)


def test_every_public_error_is_a_gateway_error() -> None:
    """One `except GatewayError` catches all that the engine raises."""
    errors = [v for n, v in vars(engine).items() if n.endswith("Error") and isinstance(v, type)]
    assert len(errors) > 20
    assert all(issubclass(error, GatewayError) for error in errors)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ConfigurationError("x"), 500, "configuration_error"),
        (InvalidRequestError("x"), 400, None),
        (InvalidRequestError("x", code="c", status=413), 413, "c"),
        (ModelNotFoundError("x"), 404, "model_not_found"),
        (UnsupportedOperationError("x"), 404, "unsupported_operation"),
        (NoProviderAvailableError("x"), 503, "no_provider_available"),
        (NoProviderAvailableError("x", reason="mailbox_full"), 503, "mailbox_full"),
        (MailboxFullError("a", 1), 503, "mailbox_full"),
        (RouterClosedError(), 503, "router_closed"),
        (DeadlineExceededError("x"), 504, "deadline_exceeded"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_other_errors_know_status_and_code(
    error: GatewayError, status: int, code: str | None
) -> None:
    """What a front door answers stands on the error."""
    assert (error.status, error.code) == (status, code)


def test_configuration_error_is_a_value_error() -> None:
    """Applications that know nothing of the engine catch `ValueError`."""
    assert issubclass(ConfigurationError, ValueError)


def test_rejections_carry_a_hint() -> None:
    """Each refusal says when to come back."""
    rejections = [
        RejectedError("x", reason="r"), MailboxFullError("a", 1), RouterClosedError(),
        NoProviderAvailableError("x"),
    ]  # fmt: skip
    assert all(error.retry_after for error in rejections)
    assert NoProviderAvailableError("x").passed_over == {}


def test_provider_error_carries_what_upstream_said() -> None:
    """Status, hint, body and names are kept, and defaults are not shared between errors."""
    error = OverloadedError(
        "x", provider="p", upstream_status=429, retry_after=2.5, status=429,
        type="rate_limit_error", code="slow_down", param="n", body={"a": 1}, replay=MAYBE,
    )  # fmt: skip
    assert (error.provider, error.upstream_status, error.retry_after) == ("p", 429, 2.5)
    assert (error.status, error.type, error.code) == (429, "rate_limit_error", "slow_down")
    assert (error.param, error.body, error.replay) == ("n", {"a": 1}, MAYBE)
    assert OverloadedError("y").status == 503


def test_error_without_text_has_its_name() -> None:
    """A message is never empty."""
    assert GatewayError().message == "GatewayError"
