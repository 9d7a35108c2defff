"""The writer of answers: which bytes go out, and what becomes of the connection."""

from __future__ import annotations

import pytest

from adapters.frontdoor.http1_answer import AnswerError, AnswerWriter, whole_answer

DATE = b"date: now\r\n"
LENGTH_2 = [(b"content-length", b"2")]


def writer_for(
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    status: int = 200,
    method: str = "POST",
    http_version: str = "1.1",
    keep_alive: bool = True,
) -> AnswerWriter:
    """A writer that knows its head."""
    writer = AnswerWriter(method=method, http_version=http_version, keep_alive=keep_alive)
    writer.start(status, headers or [], own_fields=DATE)
    return writer


def test_short_answer_is_one_piece() -> None:
    """Head and body go out together."""
    writer = writer_for(LENGTH_2)
    assert (writer.started, writer.begun) == (True, False)
    data = writer.part(b"ok", more=False)
    assert data == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ndate: now\r\n\r\nok"
    assert (writer.begun, writer.complete, writer.keep_alive) == (True, True, True)


def test_answer_of_unknown_length_is_chunked() -> None:
    """Each part is a chunk, and the end is the empty one."""
    writer = writer_for()
    assert writer.part(b"a" * 16, more=True).endswith(
        b"transfer-encoding: chunked\r\n\r\n10\r\n" + b"a" * 16 + b"\r\n"
    )
    assert writer.part(b"", more=True) == b""
    assert writer.part(b"b", more=False) == b"1\r\nb\r\n0\r\n\r\n"


def test_old_clients_get_no_chunks() -> None:
    """Before HTTP/1.1 only the end of the connection tells the end of such a body."""
    writer = writer_for(http_version="1.0", keep_alive=False)
    assert writer.part(b"a", more=True).endswith(b"connection: close\r\n\r\na")
    assert writer.part(b"b", more=False) == b"b"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_some_answers_have_no_body(method: str, status: int) -> None:
    """What the app gives as a body there is dropped."""
    writer = writer_for(method=method, status=status)
    data = writer.part(b"body", more=False)
    assert data.endswith(b"date: now\r\n\r\n")
    assert b"transfer-encoding" not in data


def test_app_may_close_the_connection() -> None:
    """The field of the app is sent once, and obeyed."""
    writer = writer_for([*LENGTH_2, (b"Connection", b"Close")])
    assert writer.part(b"ok", more=False).count(b"connection: close") == 1
    assert not writer.keep_alive


def test_framing_is_the_writers_own_affair() -> None:
    """A transfer coding that the app gives does not go out."""
    data = writer_for([*LENGTH_2, (b"transfer-encoding", b"gzip")]).part(b"ok", more=False)
    assert b"transfer-encoding" not in data


@pytest.mark.parametrize(
    "field",
    [(b"x", b"a\r\nset-cookie: b"), (b"x", b"a\nb"), (b"x", b"a\rb"), (b"x\r\ny", b"a"),
     (b"x", b"\0"), (b"content-length", b"-1"), (b"content-length", b"+1")],
)  # fmt: skip
def test_field_cannot_split_the_head(field: tuple[bytes, bytes]) -> None:
    """A line break in a field is a mistake of the app, not a second field."""
    with pytest.raises(AnswerError):
        writer_for([field])


@pytest.mark.parametrize("body", [b"a", b"abc"])
def test_body_must_have_its_length(body: bytes) -> None:
    """A body that is shorter or longer than it was said to be is not sent."""
    with pytest.raises(AnswerError):
        writer_for(LENGTH_2).part(body, more=False)


def test_messages_have_their_order() -> None:
    """No body before the start, no second start, nothing after the end, no informational start."""
    writer = AnswerWriter(method="GET", http_version="1.1", keep_alive=True)
    with pytest.raises(AnswerError):
        writer.part(b"", more=False)
    with pytest.raises(AnswerError):
        writer.start(103, [], own_fields=DATE)
    writer.start(200, [], own_fields=DATE)
    with pytest.raises(AnswerError):
        writer.start(200, [], own_fields=DATE)
    writer.part(b"", more=False)
    with pytest.raises(AnswerError):
        writer.part(b"", more=False)


def test_server_answers_by_itself_and_closes() -> None:
    """The answer to what is no request has no body."""
    assert whole_answer(599, own_fields=DATE) == (
        b"HTTP/1.1 599 \r\ncontent-length: 0\r\nconnection: close\r\ndate: now\r\n\r\n"
    )
