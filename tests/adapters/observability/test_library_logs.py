"""Which log records of this process reach stderr."""

from __future__ import annotations

import io
import logging

import pytest

from adapters.observability.library_logs import LibraryLogHandler


@pytest.mark.parametrize(
    ("name", "level", "shown"),
    [
        ("adapters.configuration.reloading", logging.INFO, True),
        ("engine.router", logging.INFO, True),
        ("engine.router", logging.DEBUG, False),
        ("hypercorn.error", logging.INFO, False),
        ("adaptersmith", logging.INFO, False),
        ("hypercorn.error", logging.WARNING, True),
    ],
)
def test_who_may_say_what(name: str, level: int, shown: bool) -> None:
    """Our own parts tell what they do; libraries only what is wrong."""
    stream = io.StringIO()
    handler = LibraryLogHandler("pretty", stream)
    logger = logging.getLogger(name)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        logger.log(level, "words")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.finish()
    assert ("words" in stream.getvalue()) is shown
