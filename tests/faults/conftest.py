"""Each fault through the library, and over HTTP; and no secret in what is logged of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fault_calls import CANARY_KEY, CANARY_PROMPT


@pytest.fixture(params=["library", "http"])
def entrance(request: pytest.FixtureRequest) -> str:
    """The way in which the call is made."""
    way: str = request.param
    return way


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The loop of Python for the library, and uvloop for the server, as it is run."""
    served = "entrance" in request.fixturenames and request.getfixturevalue("entrance") == "http"
    return "asyncio", {"use_uvloop": served}


@pytest.fixture(autouse=True)
def no_secret_in_the_logs(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[None]:
    """The key and the prompt of the calls appear in no line of the log and of the output."""
    monkeypatch.setenv("FAULT_LAB_KEY", CANARY_KEY)
    with (
        caplog.at_level(logging.DEBUG, logger="engine"),
        caplog.at_level(logging.DEBUG, logger="adapters"),
    ):
        yield
    printed = capfd.readouterr()
    for text in (caplog.text, printed.out, printed.err):
        assert CANARY_KEY not in text
        assert CANARY_PROMPT not in text
