"""Requests, responses, chunks and usage: what is read of them, and that nothing is changed."""

from typing import Any

import pytest

from engine import (
    ChatRequest,
    Chunk,
    CompletionRequest,
    EmbeddingRequest,
    InvalidRequestError,
    Operation,
    Response,
    Usage,
)
from engine.operations import REQUEST_TYPES, Request

MESSAGES = [{"role": "user", "content": "hi"}]


def test_body_is_kept_and_not_copied() -> None:
    """The parsed object and its bytes are the caller's own."""
    body = {"model": "m", "messages": MESSAGES, "x-unknown": [1, {"deep": None}]}
    request = ChatRequest.from_body(body, b"raw")
    assert request.body is body
    assert request.raw == b"raw"
    assert (request.model, request.streamed) == ("m", False)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "model", "missing_required_parameter"),
        ({"model": 3}, "model", "invalid_type"),
        ({"model": None}, "model", "invalid_type"),
        ({"model": ""}, "model", "invalid_type"),
        ({"model": ["m"]}, "model", "invalid_type"),
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({"model": "m", "messages": "hi"}, "messages", "invalid_type"),
        ({"model": "m", "messages": None}, "messages", "invalid_type"),
        ({"model": "m", "messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"model": "m", "messages": [*MESSAGES, None]}, "messages[1]", "invalid_type"),
        ({"model": "m", "messages": MESSAGES, "stream": 1}, "stream", "invalid_type"),
        ({"model": "m", "messages": MESSAGES, "stream": "true"}, "stream", "invalid_type"),
    ],
)
def test_wrong_chat_body_names_the_field(body: dict[str, Any], param: str, code: str) -> None:
    """Only what routing needs is checked, and a mistake says where it is."""
    with pytest.raises(InvalidRequestError) as caught:
        ChatRequest.from_body(body)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("request_type", "fields", "valid"),
    [
        (CompletionRequest, {"prompt": "once"}, True),
        (CompletionRequest, {"prompt": [1, 2, 3]}, True),
        (CompletionRequest, {"prompt_embeds": "…"}, True),
        (CompletionRequest, {}, False),
        (CompletionRequest, {"prompt": 7}, False),
        (EmbeddingRequest, {"input": "x"}, True),
        (EmbeddingRequest, {"input": ["x", "y"]}, True),
        (EmbeddingRequest, {"input": {"a": 1}}, False),
        (EmbeddingRequest, {}, False),
    ],
)
def test_other_operations_check_their_own_field(
    request_type: type[Request], fields: dict[str, Any], valid: bool
) -> None:
    """Each operation has one field that it cannot do without."""
    if valid:
        assert request_type("m", **fields).body == {"model": "m", **fields}
        return
    with pytest.raises(InvalidRequestError):
        request_type("m", **fields)


def test_every_operation_has_a_request_type() -> None:
    """The table of request types is complete."""
    assert {kind.operation: kind for kind in REQUEST_TYPES.values()} == REQUEST_TYPES
    assert set(REQUEST_TYPES) == set(Operation)


@pytest.mark.parametrize("value", [None, False])
def test_stream_may_be_null_or_false(value: bool | None) -> None:
    """Both mean a whole answer."""
    assert not ChatRequest("m", MESSAGES, stream=value).streamed


def test_as_streamed_changes_only_the_stream_fields() -> None:
    """Changing the manner of the answer leaves the original and all else alone."""
    request = ChatRequest("m", MESSAGES, temperature=0, top="x")
    streamed = request.as_streamed(True)
    assert streamed.body == {**request.body, "stream": True}
    assert type(streamed) is ChatRequest
    assert streamed.as_streamed(True) is streamed
    options = {"include_usage": True}
    back = ChatRequest("m", MESSAGES, stream=True, stream_options=options).as_streamed(False)
    assert back.body == {"model": "m", "messages": MESSAGES}
    assert request.as_streamed(False) is request


def test_repr_shows_no_prompt() -> None:
    """Prompts do not end up in logs by way of a repr."""
    request = ChatRequest("m", [{"role": "user", "content": "secret"}])
    response = Response({"choices": [{"message": {"content": "secret"}}]})
    chunk = Chunk(b'{"secret": 1}')
    assert "secret" not in f"{request!r}{response!r}{chunk!r}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"message": {"content": "hi"}}]}, "hi"),
        ({"choices": [{"text": "once"}]}, "once"),
        ({"choices": [{"message": {"content": None, "tool_calls": []}}]}, ""),
        ({"choices": []}, ""),
        ({"choices": None}, ""),
        ({"choices": ["odd"]}, ""),
        ({"data": []}, ""),
    ],
)
def test_text_of_a_response(body: dict[str, Any], text: str) -> None:
    """The first choice's text, or nothing."""
    assert Response(body).text == text


def test_response_gives_its_fields() -> None:
    """A response can be read like the object it holds."""
    response = Response({"model": "real", "x": 1})
    assert response["x"] == 1
    assert response.get("y", 2) == 2
    assert response.model == "real"
    assert response.usage is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 2, "completion_tokens": 3}, Usage(2, 3)),
        ({"prompt_tokens": 2}, Usage(2, 0)),
        ({"prompt_tokens": "2", "completion_tokens": None}, Usage(0, 0)),
        (None, None),
        ("many", None),
    ],
)
def test_usage_is_read_with_care(usage: Any, expected: Usage | None) -> None:
    """Odd usages do not raise."""
    assert Response({"usage": usage}).usage == expected


def test_total_of_a_usage() -> None:
    """Total is input and output together."""
    assert Usage(2, 3).total_tokens == 5


def test_chunk_is_parsed_once_and_only_when_asked() -> None:
    """The data of a chunk is left as it came until somebody wants to look."""
    chunk = Chunk(b'{"choices": [{"delta": {"content": "hi"}}], "usage": null}')
    assert chunk.commits
    assert chunk.text == "hi"
    assert chunk.body is chunk.body
    assert chunk.usage is None
    assert Chunk(b"ignored", body={"choices": [{"text": "t"}]}).text == "t"
    with pytest.raises(ValueError, match="Expecting"):
        _ = Chunk(b"{nonsense").body


@pytest.mark.parametrize("data", [b"[]", b"3", b'"usage"', b"null"])
def test_usage_of_an_odd_chunk_is_none(data: bytes) -> None:
    """JSON that is no object has no usage."""
    assert Chunk(data).usage is None
