"""Chunks of a stream become the answer that was not streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine import (
    BrokenError,
    ChatRequest,
    Chunk,
    CompletionRequest,
    EmbeddingRequest,
    Request,
    Usage,
)
from engine.chunk_assembly import Assembler, as_upstream_stream, assemble, may_stream_upstream

CHAT = ChatRequest("m", [{"role": "user", "content": "hi"}])
TEXT = CompletionRequest("m", prompt="Once")
HEAD = {"id": "c-1", "object": "chat.completion.chunk", "created": 5, "model": "real"}


def chunk(body: Any) -> Chunk:
    return Chunk(body if isinstance(body, bytes) else json.dumps(body).encode())


def choice(delta: dict[str, Any] | None, index: int = 0, **fields: Any) -> Chunk:
    return chunk({**HEAD, "choices": [{"index": index, "delta": delta, **fields}]})


def message(*chunks: Chunk) -> Any:
    return assemble(CHAT, chunks)["choices"][0]["message"]


def test_chat_is_put_together() -> None:
    """Texts are joined, the reason to finish and the usage are found, the object is renamed."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    answer = assemble(
        CHAT,
        [
            choice({"role": "assistant", "content": "", "refusal": None}, finish_reason=None),
            choice({"content": "Hel"}, finish_reason=None),
            choice({"content": "lo"}, finish_reason=None),
            choice({}, finish_reason="stop"),
            chunk({**HEAD, "choices": [], "usage": usage}),
        ],
    )
    assert answer.body == {
        "id": "c-1",
        "object": "chat.completion",
        "created": 5,
        "model": "real",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": usage,
    }
    assert answer.raw is None
    assert answer.text == "Hello"
    assert answer.usage == Usage(3, 2)


def test_completion_is_put_together() -> None:
    """Texts of a text completion are joined, for each choice, with the lists of its logprobs."""

    def part(text: str, index: int, offset: int, reason: str | None = None) -> Chunk:
        logprobs = {"tokens": [text], "text_offset": [offset], "top_logprobs": None}
        part = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return chunk({"id": "t", "object": "text_completion", "choices": [part]})

    answer = assemble(
        TEXT,
        [part("a", 1, 0), part("x", 0, 0), part("b", 1, 1, "stop"), part("y", 0, 1, "length")],
    )
    assert answer["object"] == "text_completion"
    first, second = answer["choices"]
    assert (first["index"], first["text"], first["finish_reason"]) == (0, "xy", "length")
    assert (second["index"], second["text"], second["finish_reason"]) == (1, "ab", "stop")
    assert second["logprobs"] == {
        "tokens": ["a", "b"],
        "text_offset": [0, 1],
        "top_logprobs": None,
    }


def test_completion_without_text_is_empty() -> None:
    """A choice that ended at once has an empty text."""
    answer = assemble(TEXT, [chunk({"choices": [{"index": 0, "finish_reason": "stop"}]})])
    assert answer["choices"] == [{"index": 0, "text": "", "finish_reason": "stop"}]


def test_tool_calls_are_merged_by_index() -> None:
    """Id, type and name stand once, arguments are joined, and the index is left out."""
    found = message(
        choice({"role": "assistant", "content": None}),
        choice(
            {
                "tool_calls": [
                    {"index": 0, "id": "a", "type": "function"}
                    | {"function": {"name": "f", "arguments": ""}}
                ]
            }
        ),
        choice({"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]}),
        choice({"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g"}}]}),
        choice(
            {
                "tool_calls": [
                    {"index": 0, "id": "a", "function": {"name": "f", "arguments": ":1}"}},
                    {"index": 1, "id": "", "function": {"arguments": "{}"}},
                ]
            }
        ),
    )
    assert found["content"] is None
    assert found["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_tool_calls_come_in_the_order_of_their_indices() -> None:
    """The list follows the indices, whichever call was mentioned first."""
    found = message(
        choice({"tool_calls": [{"index": 1, "id": "b"}]}),
        choice({"tool_calls": [{"index": 0, "id": "a"}]}),
    )
    assert [call["id"] for call in found["tool_calls"]] == ["a", "b"]


def test_tool_calls_without_an_index_are_told_by_their_ids() -> None:
    """A part without an id goes on with the last call, another id begins a new one."""
    found = message(
        choice({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}),
        choice({"tool_calls": [{"function": {"arguments": "}"}}]}),
        choice({"tool_calls": [{"id": "b", "function": {"name": "g", "arguments": "{}"}}]}),
    )
    assert [call["function"]["arguments"] for call in found["tool_calls"]] == ["{}", "{}"]


def test_whole_tool_calls_with_the_same_index_stay_apart() -> None:
    """Some providers number every call 0: their ids differ."""
    found = message(
        choice({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}),
        choice({"tool_calls": [{"index": 0, "id": "b", "function": {"name": "g"}}]}),
    )
    assert [call["function"]["name"] for call in found["tool_calls"]] == ["f", "g"]


def test_other_fields_of_a_delta_are_joined() -> None:
    """Reasoning, refusals, a function call and texts of unknown fields grow like the content."""
    found = message(
        choice({"reasoning_content": "th", "function_call": {"name": "f", "arguments": "{"}}),
        choice({"reasoning_content": "ink", "function_call": {"arguments": "}"}, "new": "a"}),
        choice({"new": "b", "refusal": "no", "seen": True, "marks": [1]}),
        choice({"seen": False, "marks": [2], "content": None}),
    )
    assert found == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "think",
        "function_call": {"name": "f", "arguments": "{}"},
        "new": "ab",
        "refusal": "no",
        "seen": False,
        "marks": [1, 2],
    }


def test_logprobs_of_a_chat_are_joined() -> None:
    """The lists for content and refusal hold the tokens of all chunks."""
    answer = assemble(
        CHAT,
        [
            choice({"content": "a"}, logprobs={"content": [{"token": "a"}], "refusal": None}),
            choice({"content": "b"}, logprobs={"content": [{"token": "b"}], "refusal": None}),
            choice({}, logprobs=None, finish_reason="stop"),
        ],
    )
    assert answer["choices"][0]["logprobs"] == {
        "content": [{"token": "a"}, {"token": "b"}],
        "refusal": None,
    }


def test_state_of_a_choice_is_the_latest() -> None:
    """A stop reason or a filter's finding is no text that grows; lists of tokens are."""
    answer = assemble(
        CHAT,
        [
            choice({"content": "a"}, stop_reason=None, filter={"hate": "safe"}, token_ids=[1]),
            choice({}, stop_reason="##", filter={"hate": "safe"}, token_ids=[2], finish_reason="x"),
            choice(None, stop_reason=None, finish_reason=None),
        ],
    )
    (found,) = answer["choices"]
    assert found["stop_reason"] == "##"
    assert found["filter"] == {"hate": "safe"}
    assert found["token_ids"] == [1, 2]
    assert found["finish_reason"] == "x"


def test_fields_beside_the_choices_are_kept() -> None:
    """The latest counts; an empty first event and padding leave no trace."""
    answer = assemble(
        CHAT,
        [
            chunk({"id": "", "model": "", "object": "", "choices": [], "filters": [1]}),
            chunk(
                {**HEAD, "service_tier": "default", "usage": None, "obfuscation": "xx"}
                | {"choices": [{"delta": {"content": "a"}}]}
            ),
            chunk({**HEAD, "system_fingerprint": "fp", "service_tier": None, "new": 2}),
        ],
    )
    assert {key: value for key, value in answer.body.items() if key != "choices"} == {
        "object": "chat.completion", "id": "c-1", "created": 5, "model": "real", "filters": [1],
        "service_tier": "default", "system_fingerprint": "fp", "new": 2,
    }  # fmt: skip


def test_character_that_was_cut_in_two_is_whole() -> None:
    """Halves of a surrogate pair from two chunks are one character."""
    halves = [b'{"choices":[{"delta":{"content":"\\ud83d"}}]}',
              b'{"choices":[{"delta":{"content":"\\ude00"}}]}']  # fmt: skip
    assert message(*map(chunk, halves))["content"] == "\N{GRINNING FACE}"


def test_whole_message_in_place_of_deltas_is_kept() -> None:
    """A provider that sends its message in one piece is understood."""
    told = {"role": "assistant", "content": "hi"}
    assert message(chunk({"choices": [{"index": 0, "message": told}]})) == told


@pytest.mark.parametrize(
    "body",
    [
        b"{nonsense",
        b"\xff",
        b"[]",
        b'{"choices": 5}',
        b'{"choices": ["x"]}',
        b'{"choices": [{"index": "0"}]}',
        b'{"choices": [{"index": -1}]}',
        b'{"choices": [{"delta": "x"}]}',
        b'{"choices": [{"delta": {"content": ["x"]}}]}',
        b'{"choices": [{"logprobs": {"content": [{"logprob": NaN}]}}]}',
        b'{"choices": [{"delta": {"x": ' + b"[" * 5000 + b"]" * 5000 + b"}}]}",
        b'{"choices": [{"delta": {"x": ' + b"[" * 600 + b"]" * 600 + b"}}]}",
    ],
)
def test_what_is_no_part_of_an_answer_is_broken(body: bytes) -> None:
    """Nothing is left out silently, and the error does not tell what was sent."""
    assembler = Assembler(CHAT, provider="a")
    assembler.add(choice({"content": "secret"}))
    with pytest.raises(BrokenError, match="'a' sent an event") as caught:
        assembler.add(chunk(body))
    assert caught.value.provider == "a"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("depth", [900, 5_000])
def test_deep_lists_are_broken(depth: int) -> None:
    """What is passed on unseen does not exhaust the stack: it is an error, or a whole answer."""
    assembler = Assembler(CHAT)
    nested = "[" * depth + "]" * depth
    data = f'{{"choices":[{{"logprobs":{{"content":{nested}}}}}]}}'.encode()
    try:
        assembler.add(Chunk(data))
        answer = assembler.response()
    except BrokenError:
        return
    assert json.dumps(answer["choices"][0]["logprobs"]["content"]).replace(" ", "") == nested


def test_many_indices_are_broken() -> None:
    """Finding the same index again takes time, so their number is bounded."""
    calls = [{"index": index} for index in range(2_000)]
    with pytest.raises(BrokenError):
        assemble(CHAT, [choice({"tool_calls": calls})])


def test_stream_without_a_choice_is_broken() -> None:
    """A usage alone is no answer."""
    with pytest.raises(BrokenError, match="without any choices"):
        assemble(CHAT, [chunk({"choices": [], "usage": {}})])


def test_size_is_bounded() -> None:
    """The chunk that goes over the bound breaks the answer."""
    one = choice({"content": "a"})
    assembler = Assembler(CHAT, max_bytes=2 * len(one.data))
    assembler.add(one)
    assembler.add(one)
    with pytest.raises(BrokenError, match="more than"):
        assembler.add(one)
    assert assembler.response().text == "aa"


def test_long_answer_takes_linear_time() -> None:
    """A hundred thousand chunks are put together without copying the text each time."""
    one = choice({"content": "abcde"})
    assert len(assemble(CHAT, [one] * 100_000).text) == 500_000


def test_embeddings_are_not_put_together() -> None:
    """There are no chunks of embeddings."""
    with pytest.raises(ValueError, match="embeddings"):
        Assembler(EmbeddingRequest("m", input="x"))


def test_upstream_stream_asks_for_usage() -> None:
    """The body for the provider streams and ends with the usage; the rest is as it was."""
    asked = ChatRequest("m", CHAT.body["messages"], n=2, stream_options={"x": 1})
    sent = as_upstream_stream(asked)
    assert isinstance(sent, ChatRequest)
    assert sent.streamed
    assert sent.body == {
        **asked.body,
        "stream": True,
        "stream_options": {"x": 1, "include_usage": True},
    }
    assert asked.body["stream_options"] == {"x": 1}
    assert as_upstream_stream(CHAT).body["stream_options"] == {"include_usage": True}


def test_upstream_stream_leaves_a_mistake_to_the_provider() -> None:
    """Options that are no object are the caller's mistake, and stay one."""
    asked = ChatRequest("m", [], stream_options="all")
    assert as_upstream_stream(asked).body["stream_options"] == "all"


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (CHAT, True),
        (TEXT, True),
        (EmbeddingRequest("m", input="x"), False),
        (ChatRequest("m", [], modalities=["text"]), True),
        (ChatRequest("m", [], modalities=["text", "audio"]), False),
        (ChatRequest("m", [], audio={"format": "wav"}), False),
        (CompletionRequest("m", prompt="x", best_of=3), False),
        (CompletionRequest("m", prompt="x", best_of=3, n=3), True),
    ],
)
def test_what_may_be_streamed_upstream(request_: Request, allowed: bool) -> None:
    """Only what a stream tells in full is asked for as a stream."""
    assert may_stream_upstream(request_) is allowed
