"""Any answer, cut into chunks in any way, is put together to itself."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine import BrokenError, ChatRequest, Chunk, CompletionRequest
from engine.chunk_assembly import Assembler, assemble

CHAT = ChatRequest("m", [])
TEXT = CompletionRequest("m", prompt="x")

texts = st.text(max_size=30)
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
calls: st.SearchStrategy[dict[str, Any]] = st.builds(
    lambda name, arguments, number: {
        "id": f"call-{number}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    },
    st.text(min_size=1, max_size=5),
    texts,
    st.integers(0, 9),
)
required: dict[str, st.SearchStrategy[Any]] = {
    "role": st.just("assistant"),
    "content": st.none() | texts,
}
optional: dict[str, st.SearchStrategy[Any]] = {
    "refusal": st.none() | texts,
    "reasoning_content": texts,
    "unknown": texts,
    "tool_calls": st.lists(calls, min_size=1, max_size=3, unique_by=lambda call: str(call["id"])),
    "function_call": st.fixed_dictionaries({"name": st.just("f"), "arguments": texts}),
}
messages = st.fixed_dictionaries(required, optional=optional)
tokens = st.lists(st.fixed_dictionaries({"token": texts, "logprob": st.floats(-9, 0)}), max_size=4)
reasons = st.sampled_from(["stop", "length", "tool_calls"])
tops = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1, max_size=5),
        "created": st.integers(1, 99),
        "model": st.just("real"),
    },
    optional={
        "system_fingerprint": st.text(min_size=1, max_size=5),
        "service_tier": st.just("default"),
        "usage": st.fixed_dictionaries({"prompt_tokens": st.integers(0, 9)}),
        "extra": json_values.filter(lambda value: value not in (None, "")),
    },
)


def chat_choices(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for index in range(draw(st.integers(1, 3))):
        choice = {"index": index, "message": draw(messages), "finish_reason": draw(reasons)}
        if draw(st.booleans()):
            choice["logprobs"] = {"content": draw(tokens), "refusal": None}
        found.append(choice)
    return found


@st.composite
def chat_answers(draw: st.DrawFn) -> dict[str, Any]:
    return {"object": "chat.completion", **draw(tops), "choices": chat_choices(draw)}


def cut(draw: st.DrawFn, text: str) -> list[str]:
    """The text in pieces, at least one; some may be empty."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def deltas(draw: st.DrawFn, message: dict[str, Any]) -> list[dict[str, Any]]:
    """The message as changes, in the order in which providers send them."""
    found: list[dict[str, Any]] = [{"role": "assistant"}]
    for key, value in message.items():
        if value is None:
            found.append({key: None})
        elif key == "tool_calls":
            found += [delta for n, call in enumerate(value) for delta in call_deltas(draw, n, call)]
        elif key == "function_call":
            first, *others = cut(draw, value["arguments"])
            found.append({key: {"name": value["name"], "arguments": first}})
            found += [{key: {"arguments": part}} for part in others]
        elif key != "role":
            found += [{key: part} for part in cut(draw, value)]
    return found


def call_deltas(draw: st.DrawFn, index: int, call: dict[str, Any]) -> list[dict[str, Any]]:
    first, *others = cut(draw, call["function"]["arguments"])
    begin = {**call, "index": index, "function": {**call["function"], "arguments": first}}
    return [{"tool_calls": [begin]}] + [
        {"tool_calls": [{"index": index, "function": {"arguments": part}}]} for part in others
    ]


def shuffled(draw: st.DrawFn, queues: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Events of several choices between each other, each choice's own in their order."""
    found = []
    while queues := [queue for queue in queues if queue]:
        found.append(queues[draw(st.integers(0, len(queues) - 1))].pop(0))
    return found


@st.composite
def chat_streams(draw: st.DrawFn) -> tuple[dict[str, Any], list[Chunk]]:
    answer = draw(chat_answers())
    queues = []
    for choice in answer["choices"]:
        index = choice["index"]
        parts = [{"index": index, "delta": d} for d in deltas(draw, choice["message"])]
        if "logprobs" in choice:
            tokens = choice["logprobs"]["content"]
            place = draw(st.integers(0, len(tokens)))
            for part in (tokens[:place], tokens[place:]):
                logprobs = {"content": part, "refusal": None}
                parts.append({"index": index, "delta": {}, "logprobs": logprobs})
        parts.append({"index": index, "delta": {}, "finish_reason": choice["finish_reason"]})
        queues.append(parts)
    top = {key: value for key, value in answer.items() if key not in ("choices", "usage")}
    top["object"] = "chat.completion.chunk"
    events = [{**top, "usage": None, "choices": [part]} for part in shuffled(draw, queues)]
    if "usage" in answer:
        events.append({**top, "choices": [], "usage": answer["usage"]})
    return answer, [Chunk(json.dumps(event).encode()) for event in events]


@given(chat_streams())
def test_chat_survives_being_streamed(example: tuple[dict[str, Any], list[Chunk]]) -> None:
    """However a chat's answer is cut, putting it together gives the very answer."""
    answer, chunks = example
    assert assemble(CHAT, chunks).body == answer


@given(st.data(), st.lists(texts, min_size=1, max_size=4))
def test_completion_survives_being_streamed(data: st.DataObject, given_texts: list[str]) -> None:
    """However the texts of a completion are cut, they come back whole and in order."""
    queues = [
        [{"index": index, "text": part} for part in data.draw(st.composite(cut)(text))]
        + [{"index": index, "text": "", "finish_reason": "stop"}]
        for index, text in enumerate(given_texts)
    ]
    events = data.draw(st.composite(shuffled)(queues))
    chunks = [Chunk(json.dumps({"id": "t", "choices": [event]}).encode()) for event in events]
    assert assemble(TEXT, chunks)["choices"] == [
        {"index": index, "text": text, "finish_reason": "stop"}
        for index, text in enumerate(given_texts)
    ]


@given(st.lists(json_values | st.fixed_dictionaries({"choices": json_values}), max_size=5))
def test_any_events_are_an_answer_or_broken(events: list[Any]) -> None:
    """Whatever JSON a provider sends, there is no other exception than the one that says so."""
    assembler = Assembler(CHAT)
    try:
        for event in events:
            assembler.add(Chunk(json.dumps(event).encode()))
        assert assembler.response()["choices"]
    except BrokenError as error:
        assert str(error)  # noqa: PT017 - either way is right
