"""The parser of server-sent events, against a simple one and against every way of cutting."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from adapters.providers.sse import Event, SSEParser

lines = st.sampled_from(
    [
        b"data: {}", b'data: {"a": 1}', b"data:x", b"data", b"data:", b"data:  two", b": comment",
        b":", b"event: error", b"event:", b"event", b"id: 1", b"retry: 5", b"unknown: x",
        "data: é😀".encode(), b"data: \xff", b"\xef\xbb\xbfdata: late mark", b"", b"", b"",
    ]
)  # fmt: skip
ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
streams = st.builds(
    lambda mark, rows, tail: mark + b"".join(line + end for line, end in rows) + tail,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xef", b"\xef\xbb"]),
    st.lists(st.tuples(lines, ends), max_size=25),
    st.sampled_from([b"", b"data: cut", b"\r", b"\n"]),
)


def reference(stream: bytes) -> list[Event]:
    """The standard's algorithm, line by line over the whole stream at once."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    rows = re.split(rb"\r\n|\r|\n", stream)[:-1]  # the last line has no end
    events: list[Event] = []
    data: list[bytes] = []
    name: str | None = None
    for row in rows:
        if row == b"":
            if data:
                events.append((name, b"\n".join(data)))
            data, name = [], None
            continue
        field, _, value = row.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace") or None
    return events


def parse(stream: bytes, cuts: list[int], **limits: int) -> tuple[list[Event], SSEParser]:
    parser = SSEParser(**limits)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    events = []
    for begin, end in zip(places, [*places[1:], len(stream)], strict=True):
        events += parser.feed(stream[begin:end])
    return events, parser


@given(streams, st.lists(st.integers(0, 300), max_size=10))
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", list(range(30)))
@example(b"\xef\xbb\xbfdata: a\n\n", [1, 2])
def test_cutting_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    """However the network cuts the bytes, the events are those of the standard."""
    assert parse(stream, cuts)[0] == reference(stream)


@given(streams)
def test_single_bytes_are_enough(stream: bytes) -> None:
    """Reads of one byte each give the same events."""
    assert parse(stream, list(range(len(stream))))[0] == reference(stream)


@given(streams, st.integers(4, 30), st.lists(st.integers(0, 300), max_size=10))
def test_the_limit_does_not_depend_on_cutting(stream: bytes, limit: int, cuts: list[int]) -> None:
    """An event that is too large ends the events at the same place in every cut."""
    whole, parser = parse(stream, [], max_event_bytes=limit)
    pieces, other = parse(stream, cuts, max_event_bytes=limit)
    assert (pieces, other.overflowed) == (whole, parser.overflowed)
    assert whole == reference(stream)[: len(whole)]
    assert parser.overflowed or whole == reference(stream)


def test_an_endless_line_is_bounded() -> None:
    """A line without an end is given up at the limit and takes no more memory."""
    parser = SSEParser(max_event_bytes=1_000)
    for _ in range(100):
        assert parser.feed(b"x" * 100) == []
    assert parser.overflowed
    assert len(parser._line) <= 1_000


def test_many_short_data_lines_are_bounded() -> None:
    """An event made of many lines counts as a whole."""
    parser = SSEParser(max_event_bytes=1_000)
    parser.feed(b"data: 123456789\n" * 101)
    assert parser.overflowed


def test_comments_cost_nothing() -> None:
    """Keep-alives between two events may go on for ever."""
    parser = SSEParser(max_event_bytes=100)
    assert parser.feed(b": ping\n" * 1_000 + b"\n" + b": ping\n\n" * 1_000) == []
    assert not parser.overflowed


def test_an_unfinished_event_is_dropped_and_reported() -> None:
    """What has no blank line behind it is no event, but it is known to be there."""
    parser = SSEParser()
    assert parser.feed(b"data: a\n\ndata: b\n") == [(None, b"a")]
    assert parser.is_inside_event
    assert parser.feed(b"\n") == [(None, b"b")]
    assert not parser.is_inside_event
