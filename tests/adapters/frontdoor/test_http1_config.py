"""Our settings of the HTTP/1.1 server."""

from __future__ import annotations

import email.utils
import socket
import time

from adapters.frontdoor.http1_config import Http1Config


def test_answers_are_dated_with_the_present_second() -> None:
    """The date that is written once a second is never an old one."""
    with socket.socket() as listener:
        config = Http1Config(listener, head_seconds=10)
        for _ in range(3):
            dated = config.own_fields().removeprefix(b"date: ").removesuffix(b"\r\n").decode()
            age = time.time() - email.utils.parsedate_to_datetime(dated).timestamp()
            assert 0 <= age < 2
            config._dated -= 1
