"""What a mock provider says: answers, streams and errors as the real servers write them."""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

Dialect = Literal["openai", "vllm"]

CREATED = 1_767_225_600
"""The `created` of every answer, so that equal seeds give equal bytes: 1 January 2026."""

_DEFAULT_TEXT = "This is a mock answer by {name}: no model was asked."
_WORD = re.compile(r"\s*\S+|\s+\Z")
_MAX_CHOICES = 128
# Both write these on every message, empty (seen with vLLM 0.32 and OpenAI's document).
_EXTRA_MESSAGE_FIELDS: dict[Dialect, dict[str, Any]] = {
    "openai": {"refusal": None, "annotations": []},
    "vllm": {"refusal": None, "annotations": None, "audio": None, "function_call": None,
             "reasoning": None},
}  # fmt: skip
_EXTRA_CHOICE_FIELDS: dict[Dialect, dict[str, Any]] = {
    "openai": {},
    "vllm": {"stop_reason": None, "token_ids": None},
}
_ERROR_TYPES: dict[Dialect, dict[int, str]] = {
    "openai": {401: "invalid_request_error", 403: "permission_error", 429: "requests",
               500: "server_error", 503: "server_error"},
    "vllm": {400: "BadRequestError", 401: "Unauthorized", 404: "NotFoundError",
             422: "UnprocessableEntityError", 500: "InternalServerError",
             503: "ServiceUnavailableError"},
}  # fmt: skip


class MockAnswer:
    """The answer to one request, whole or in chunks.

    Deterministic: the same request, text, dialect and state of `rng` give the same bytes.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        words: list[str],
        *,
        dialect: Dialect,
        rng: random.Random,
        is_chat: bool,
    ) -> None:
        self._request = request
        self._dialect = dialect
        self._is_chat = is_chat
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        cut = type(limit) is int and 0 < limit < len(words)
        self.words = words[:limit] if cut else words
        self._tool = _demanded_tool(request) if is_chat else None
        self._finish = "tool_calls" if self._tool else "length" if cut else "stop"
        n = request.get("n")
        self._count = min(n, _MAX_CHOICES) if type(n) is int and n > 0 else 1
        prefix = "chatcmpl" if is_chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{rng.getrandbits(96):024x}",
            "created": CREATED,
            "model": request.get("model"),
        }
        self._tool_id = f"call_{rng.getrandbits(64):016x}" if self._tool else ""

    def whole(self) -> dict[str, Any]:
        """The answer that is not streamed."""
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {
            **self._head,
            "object": kind,
            "choices": [self._choice(index) for index in range(self._count)],
            "usage": self._usage(),
            **self._tail(),
        }

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The streamed answer: role, words or a tool call, finish, usage if asked for."""
        for index in range(self._count):
            if self._is_chat:
                yield self._chunk(index, {"role": "assistant", "content": ""})
            if self._tool:
                yield from self._tool_chunks(index)
            else:
                for word in self.words:
                    yield self._chunk(index, {"content": word} if self._is_chat else word)
            yield self._chunk(index, {} if self._is_chat else "", finish=self._finish)
        if self._wants_usage("include_usage"):
            yield {**self._chunk_head(), "choices": [], "usage": self._usage()}

    def _choice(self, index: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index}
        text = "".join(self.words)
        if not self._is_chat:
            choice["text"] = text
        else:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if self._tool:
                call = {"name": self._tool[0], "arguments": self._tool[1]}
                message["content"] = None
                message["tool_calls"] = [
                    {"id": self._tool_id, "type": "function", "function": call}
                ]
            choice["message"] = message | _EXTRA_MESSAGE_FIELDS[self._dialect]
        extra = _EXTRA_CHOICE_FIELDS[self._dialect]
        return {**choice, "logprobs": None, "finish_reason": self._finish, **extra}

    def _tool_chunks(self, index: int) -> Iterator[dict[str, Any]]:
        name, arguments = self._tool or ("", "")
        first = {"index": 0, "id": self._tool_id, "type": "function"}
        begin = {**first, "function": {"name": name, "arguments": ""}}
        yield self._chunk(index, {"tool_calls": [begin]})
        for at in range(0, len(arguments), 8):
            piece = {"index": 0, "function": {"arguments": arguments[at : at + 8]}}
            yield self._chunk(index, {"tool_calls": [piece]})

    def _chunk(
        self, index: int, delta: dict[str, Any] | str, *, finish: str | None = None
    ) -> dict[str, Any]:
        field = "delta" if self._is_chat else "text"
        choice = {"index": index, field: delta, "logprobs": None, "finish_reason": finish}
        chunk: dict[str, Any] = {**self._chunk_head(), "choices": [choice]}
        if self._wants_usage("continuous_usage_stats"):
            chunk["usage"] = self._usage()
        elif self._dialect == "openai" and self._wants_usage("include_usage"):
            chunk["usage"] = None
        return chunk

    def _chunk_head(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._head, "object": kind, **self._tail()}

    def _tail(self) -> dict[str, Any]:
        if self._dialect == "vllm":
            return {}
        return {"service_tier": "default", "system_fingerprint": "fp_mock"}

    def _wants_usage(self, option: str) -> bool:
        options = self._request.get("stream_options")
        return isinstance(options, Mapping) and options.get(option) is True

    def _usage(self) -> dict[str, Any]:
        given = _count_tokens(self._request.get("messages") or self._request.get("prompt"))
        made = self._count * (1 if self._tool else len(self.words))
        return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def words_of(text: str | None, reply_tokens: int | None, name: str) -> list[str]:
    """The tokens of a mock's answer, each with the blank before it."""
    words = _WORD.findall(text if text is not None else _DEFAULT_TEXT.format(name=name))
    if reply_tokens is None:
        return words
    endless = itertools.cycle([words[0], *words[1:]] if words else ["word"])
    return [
        word if index == 0 or word[0].isspace() else f" {word}"
        for index, word in enumerate(itertools.islice(endless, reply_tokens))
    ]


def embeddings(request: Mapping[str, Any], dimensions: int) -> dict[str, Any]:
    """Embeddings that depend on nothing but each input's text; unit-free noise."""
    given = request.get("input")
    single = isinstance(given, str) or (
        isinstance(given, list) and all(type(item) is int for item in given)
    )
    inputs = [given] if single else given if isinstance(given, list) else []
    asked = request.get("dimensions")
    size = min(asked, 10_000) if type(asked) is int and asked > 0 else dimensions
    encoded = request.get("encoding_format") == "base64"
    data = []
    for index, item in enumerate(inputs):
        noise = random.Random(zlib.crc32(json.dumps(item).encode()))
        vector = [round(noise.uniform(-1, 1), 6) for _ in range(size)]
        packed = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() if encoded else vector
        data.append({"object": "embedding", "index": index, "embedding": packed})
    tokens = sum(_count_tokens(item) for item in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request.get("model"), "usage": usage}


def model_list(models: tuple[str, ...], dialect: Dialect) -> dict[str, Any]:
    """The answer to `GET /models`."""
    owner = "vllm" if dialect == "vllm" else "mock"
    entries = [{"id": m, "object": "model", "created": CREATED, "owned_by": owner} for m in models]
    return {"object": "list", "data": entries}


def error_body(
    status: int, message: str, dialect: Dialect, *, code: str | None = None
) -> dict[str, Any]:
    """An error in a dialect: vLLM writes the status as `code`, and a bare text for 401."""
    default = "api_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004
    kind = _ERROR_TYPES[dialect].get(status, default)
    if dialect == "vllm":
        if status == 401:  # noqa: PLR2004
            return {"error": "Unauthorized"}
        return {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _demanded_tool(request: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name and arguments of the tool that the request wants to be called, if it does."""
    tools, choice = request.get("tools"), request.get("tool_choice")
    functions = [
        tool["function"]
        for tool in (tools if isinstance(tools, list) else [])
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        wanted = choice["function"].get("name")
        functions = [function for function in functions if function.get("name") == wanted]
    elif choice != "required":
        return None
    if not functions:
        return None
    return str(functions[0].get("name")), json.dumps(_arguments_for(functions[0]))


def _arguments_for(function: Mapping[str, Any]) -> dict[str, Any]:
    """A value of the right type for each argument that the schema requires."""
    schema = function.get("parameters")
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return {}
    values: dict[str, Any] = {
        "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None,
    }  # fmt: skip
    arguments = {}
    for name in schema.get("required") or []:
        field = schema["properties"].get(name)
        kind = field.get("type") if isinstance(field, dict) else None
        arguments[name] = values.get(kind, "mock") if isinstance(kind, str) else "mock"
    return arguments


def _count_tokens(value: Any) -> int:
    """A rough count, four characters a token; a list of numbers is tokens already."""
    if isinstance(value, list) and all(type(item) is int for item in value):
        return len(value)
    return len(json.dumps(value)) // 4 + 1
