"""Reading request bodies strictly, and writing them back with one change."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.json_body import MAX_DEPTH, encode_body, parse_answer_body, parse_request_body
from engine.errors import InvalidRequestError
from engine.operations import ChatRequest

SECRET = b"my-secret-prompt"

scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["model", '"model"', '\\"model": "x"', "é", "😀", "\u2028", "\x00"])
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["Model", "mode", "tools", '"model"', "a\\"]
)
values = st.recursive(
    scalars,
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(keys | st.just("model"), children, max_size=4)
    ),
    max_leaves=12,
)
models = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
# `stream` has a meaning and a type of its own; everything else may hold anything.
bodies = st.dictionaries(keys.filter(lambda key: key != "stream"), values, max_size=5)


@st.composite
def written_bodies(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    """A body with `model` somewhere among its fields, spelled with or without escapes."""
    fields = list(draw(bodies).items())
    fields.insert(draw(st.integers(0, len(fields))), ("model", draw(models)))
    body = {**dict(fields), "messages": []}
    text = json.dumps(
        body,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1])),
        separators=draw(st.sampled_from([None, (",", ":"), (" ,\t", "\r\n: ")])),
    )
    return body, text.encode()


@given(written_bodies(), models)
def test_only_the_model_changes(written: tuple[dict[str, Any], bytes], model: str) -> None:
    """Whatever the JSON, what is sent is the same object with another `model`."""
    body, raw = written
    parsed = parse_request_body(raw)
    assert parsed == body
    sent = encode_body(ChatRequest.from_body(parsed, raw), model)
    assert parse_request_body(sent) == {**body, "model": model}
    assert list(parse_request_body(sent)) == list(body)


@given(written_bodies(), models)
def test_every_byte_beside_the_model_stays(
    written: tuple[dict[str, Any], bytes], model: str
) -> None:
    """The bytes before and after the value of `model` are those that came."""
    body, raw = written
    if model == body["model"]:
        return
    sent = encode_body(ChatRequest.from_body(body, raw), model)
    value = json.dumps(model).encode()
    old = [json.dumps(body["model"], ensure_ascii=flag).encode() for flag in (True, False)]
    assert any(
        sent == raw[:at] + value + raw[at + len(text) :]
        for text in old
        for at in range(len(raw))
        if raw.startswith(text, at)
    )


@given(bodies, models, models)
def test_a_request_made_in_python_is_written_whole(
    fields: dict[str, Any], model: str, other: str
) -> None:
    """Without bytes to keep, the body is written from the object."""
    body = {"messages": [], **fields, "model": model}
    body["messages"] = []
    sent = encode_body(ChatRequest.from_body(body), other)
    assert json.loads(sent) == {**body, "model": other}


def test_the_same_model_sends_the_same_bytes() -> None:
    """Nothing is touched, not even copied, if the provider's name is the caller's."""
    raw = b'{ "model" : "a", "messages":[], "x": 1.0e2, "y": 10000000000000000000001}'
    request = ChatRequest.from_body(parse_request_body(raw), raw)
    assert encode_body(request, "a") is raw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"tools":[{"model":1.50}],"messages":[],"model":"a"}',
        b'{"m\\u006fdel" : "a","messages":[], "f":1e+2}',
        b'{"messages":[{"content":"the \\"model\\": \\"a\\""}],"model":"a"}',
        b'{"x":"\\u00e9","model":"a","messages":[]}',
        b'{"model"\r\n:\t"a\\"\\\\", "messages":[]}',
    ],
)
def test_awkward_places_of_the_model_are_found(raw: bytes) -> None:
    """Escapes, nested keys and quotes in texts do not mislead the splice."""
    body = parse_request_body(raw)
    sent = encode_body(ChatRequest.from_body(body, raw), "new")
    assert json.loads(sent) == {**body, "model": "new"}
    assert len(sent) - len(raw) == len('"new"') - len(json.dumps(body["model"]))


def test_integers_stay_exact() -> None:
    """Twenty digits are twenty digits."""
    assert parse_request_body(b'{"seed":12345678901234567890}') == {"seed": 12345678901234567890}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b"null", "object"),
        (b'{"a":"' + SECRET + b'"', "line 1"),
        (b'{"a":"' + SECRET + b'" "b"}', "line 1"),
        (b'{"a":"' + SECRET + b'"} x', "line 1"),
        (b"{'a':1}", "line 1"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":Infinity}', "Infinity"),
        (b'{"a":-Infinity}', "Infinity"),
        (b'{"a":1e999}', "too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "too long"),
        (b'{"a":"' + SECRET + b'\xff"}', "UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
        ("\ufeff{}".encode(), "byte order mark"),
        ("{}".encode("utf-16"), "UTF-8"),
        ('{"a":1}'.encode("utf-16-le"), "JSON"),
        (b'{"a":"\\ud800' + SECRET + b'"}', "surrogate"),
        (b'{"a":"\\uDC00\\ud83d"}', "surrogate"),
        (b'{"a":"\x01"}', "control character"),
        (b"[" * 200_000, "deep"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "deep"),
    ],
)
def test_bad_bodies_are_refused_in_words(raw: bytes, words: str) -> None:
    """Each is a 400 that says what is wrong and holds nothing of the body."""
    with pytest.raises(InvalidRequestError) as caught:
        parse_request_body(raw)
    assert caught.value.status == 400
    assert caught.value.code == "invalid_json"
    assert words in caught.value.message
    assert SECRET.decode() not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b'{"model":"a","model":"b"}', "model"),
        (b'{"model":"a","m\\u006fdel":"b"}', "model"),
        (b'{"stream":true,"x":{},"stream":false}', "stream"),
        (b'{"messages":[],"messages":[]}', "messages"),
    ],
)
def test_a_routed_field_twice_is_refused(raw: bytes, field: str) -> None:
    """We might read one and the provider the other, so neither is taken."""
    with pytest.raises(InvalidRequestError) as caught:
        parse_request_body(raw)
    assert (caught.value.param, caught.value.code) == (field, "duplicate_field")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"x":{"model":1},"model":"a","y":{"model":2}}',
        b'{"a":"\\ud83d\\ude00"}',
        b'{"a":"\\\\ud800"}',
        b'{"a":' * (MAX_DEPTH - 1) + b"{}" + b"}" * (MAX_DEPTH - 1),
        b'{"a":[' + b",".join([b"[]"] * 5000) + b"]}",
    ],
)
def test_odd_and_good_bodies_are_taken(raw: bytes) -> None:
    """What only looks suspicious is read as the standard library reads it."""
    assert parse_request_body(raw) == json.loads(raw)


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ({"temperature": math.nan}, "temperature"),
        ({"a": {"b": [1, math.inf]}}, "a.b[1]"),
        ({"a": {1, 2}}, "a"),
        ({"a": [object()]}, "a[0]"),
        ({"a": b"x"}, "a"),
    ],
)
def test_what_json_cannot_say_is_named(field: dict[str, Any], place: str) -> None:
    """A request made in Python is refused with the place of the wrong value."""
    with pytest.raises(InvalidRequestError) as caught:
        encode_body(ChatRequest("m", [], **field), "m")
    assert caught.value.param == place


def test_a_body_that_holds_itself_is_refused() -> None:
    """A cycle ends in an error of ours, not in a recursion error."""
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    with pytest.raises(InvalidRequestError):
        encode_body(ChatRequest("m", [], cycle=cycle), "m")


def test_half_a_pair_from_python_is_escaped() -> None:
    """A text that UTF-8 cannot carry is sent as the escape that JSON has for it."""
    sent = encode_body(ChatRequest("m", [{"role": "user", "content": "\ud800"}]), "m")
    assert b"\\ud800" in sent


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff{}", b'{"a":NaN}', b'{"a":"\\udfff"}', b"{"])
def test_bad_answers_are_refused(raw: bytes) -> None:
    """An answer that is no clean JSON object raises a plain ValueError."""
    with pytest.raises(ValueError, match=r"^(not|no|half)"):
        parse_answer_body(raw)
