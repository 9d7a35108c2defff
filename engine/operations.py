"""The types that travel: requests, responses, chunks of a stream, and usage.

A request keeps its JSON body as it came; nothing but what routing needs is looked at,
so a field that this version does not know passes both ways untouched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

from engine.errors import InvalidRequestError


class Operation(StrEnum):
    """What is asked of a model."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


class Request:
    """What a caller asked for: a JSON object, and the few fields that routing reads.

    Attributes:
        body: The JSON object as it came, `model` included. Treated as immutable.
        raw: The bytes that `body` was read from, or None if it never was bytes.
        model: The model name the caller asked for.
        streamed: Whether the caller wants the answer as a stream of events.
    """

    __slots__ = ("body", "model", "raw", "streamed")

    operation: ClassVar[Operation]
    required: ClassVar[str]
    """The field, beside `model`, that a body of this operation must have."""

    def __init__(self, model: str, **fields: Any) -> None:
        self._take({"model": model, **fields}, None)

    @classmethod
    def from_body(cls, body: Mapping[str, Any], raw: bytes | None = None) -> Self:
        """Make a request from a JSON object.

        Args:
            body: The parsed object; kept, not copied.
            raw: The bytes it was parsed from, which let an adapter send them on unchanged.

        Raises:
            InvalidRequestError: If `model`, `stream` or the operation's own field is
                missing or has the wrong type; `param` names the field.
        """
        request = cls.__new__(cls)
        request._take(body, raw)  # noqa: SLF001 - its own class
        return request

    def _take(self, body: Mapping[str, Any], raw: bytes | None) -> None:
        model = body.get("model")
        if type(model) is not str or not model:
            raise _wrong_field(body, "model", "a non-empty string")
        streamed = body.get("stream")
        if streamed is not None and type(streamed) is not bool:
            raise _wrong_field(body, "stream", "true or false")
        self._check(body)
        self.body = body
        self.raw = raw
        self.model = model
        self.streamed = bool(streamed)

    def _check(self, body: Mapping[str, Any]) -> None:
        if body.get(self.required) is None:
            raise _wrong_field(body, self.required, "present")

    def as_streamed(self, streamed: bool) -> Self:
        """The same request with `stream` as told; itself if nothing has to change."""
        if self.streamed is streamed:
            return self
        body = {key: value for key, value in self.body.items() if key != "stream"}
        if streamed:
            body["stream"] = True
        else:
            body.pop("stream_options", None)
        return type(self).from_body(body)

    def __repr__(self) -> str:
        # Prompts never belong in a repr: it ends up in logs and tracebacks.
        return f"{type(self).__name__}(model={self.model!r}, streamed={self.streamed})"


class ChatRequest(Request):
    """A chat completion: `ChatRequest(model="chat", messages=[…], temperature=0)`."""

    __slots__ = ()
    operation = Operation.CHAT
    required = "messages"

    def __init__(self, model: str, messages: list[dict[str, Any]], **fields: Any) -> None:
        super().__init__(model, messages=messages, **fields)

    def _check(self, body: Mapping[str, Any]) -> None:
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise _wrong_field(body, "messages", "a list of messages")
        for index, message in enumerate(messages):
            if not isinstance(message, dict):
                raise _wrong_type(f"messages[{index}]", "an object", message)


class CompletionRequest(Request):
    """A text completion: `CompletionRequest(model="chat", prompt="Once")`."""

    __slots__ = ()
    operation = Operation.COMPLETIONS
    required = "prompt"

    def _check(self, body: Mapping[str, Any]) -> None:
        # vLLM takes `prompt_embeds` in place of `prompt`.
        if "prompt_embeds" in body:
            return
        if not isinstance(body.get("prompt"), (str, list)):
            raise _wrong_field(body, "prompt", "a string or a list")


class EmbeddingRequest(Request):
    """Embeddings: `EmbeddingRequest(model="embed", input=["one", "two"])`."""

    __slots__ = ()
    operation = Operation.EMBEDDINGS
    required = "input"

    def _check(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("input"), (str, list)):
            raise _wrong_field(body, "input", "a string or a list")


REQUEST_TYPES: dict[Operation, type[Request]] = {
    Operation.CHAT: ChatRequest,
    Operation.COMPLETIONS: CompletionRequest,
    Operation.EMBEDDINGS: EmbeddingRequest,
}


def _wrong_field(body: Mapping[str, Any], name: str, wanted: str) -> InvalidRequestError:
    if name not in body:
        return InvalidRequestError(
            f"the field {name!r} is missing: it must be {wanted}",
            param=name,
            code="missing_required_parameter",
        )
    return _wrong_type(name, wanted, body[name])


def _wrong_type(name: str, wanted: str, value: object) -> InvalidRequestError:
    shown = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(
        type(value), "null" if value is None else "a number"
    )
    if value == "":
        shown = "an empty string"
    return InvalidRequestError(
        f"the field {name!r} must be {wanted}, but it is {shown}", param=name, code="invalid_type"
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, as the provider counted them."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Usage | None:
        """Read an OpenAI-style `usage` object out of an answer or a chunk, if there is one."""
        usage = body.get("usage")
        # The common cases first: asking for an abstract class takes longer than all the rest.
        if usage is None or (type(usage) is not dict and not isinstance(usage, Mapping)):
            return None
        given, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return cls(given if type(given) is int else 0, made if type(made) is int else 0)


class Replayed(StrEnum):
    """How an answer came to a caller for whom nothing was asked upstream."""

    JOINED = "joined"
    """The request of another caller, with the same idempotency key, was running."""
    STORED = "stored"
    """The answer to the same idempotency key had been kept."""


class Response:
    """A whole answer.

    Attributes:
        body: The provider's JSON object, every field as it came.
        raw: The bytes it came as, or None if it never was bytes.
        provider: Name of the provider that answered.
        attempts: How many upstream calls the request took, this one included; 0 for a
            replayed answer.
        request_id: The request's id; of a replayed answer, the id of the request that
            was sent upstream.
        upstream_seconds: Time spent in upstream calls, failed ones included.
        fallbacks: Other models that were asked because the one asked for could not answer.
        replayed: How the answer was shared by an idempotency key; None if it was not.
    """

    __slots__ = (
        "attempts",
        "body",
        "fallbacks",
        "provider",
        "raw",
        "replayed",
        "request_id",
        "upstream_seconds",
    )

    def __init__(self, body: dict[str, Any], raw: bytes | None = None) -> None:
        self.body = body
        self.raw = raw
        self.provider = ""
        self.attempts = 1
        self.request_id = ""
        self.upstream_seconds = 0.0
        self.fallbacks: tuple[str, ...] = ()
        self.replayed: Replayed | None = None

    def __getitem__(self, key: str) -> Any:
        return self.body[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The field `key` of the body, or `default`."""
        return self.body.get(key, default)

    @property
    def model(self) -> str | None:
        """The model name that the provider reports."""
        return self.body.get("model")

    @property
    def text(self) -> str:
        """The text of the first choice; empty when there is none (tool calls, embeddings)."""
        return _first_text(self.body, "message")

    @property
    def usage(self) -> Usage | None:
        """Tokens as the provider counted them, or None if it did not say."""
        return Usage.from_body(self.body)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(provider={self.provider!r}, attempts={self.attempts})"


ChatResponse = Response
CompletionResponse = Response
EmbeddingResponse = Response


def _first_text(body: Mapping[str, Any], part: str) -> str:
    """The text of the first choice: in `part` for chats, beside it for completions."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    holder = choices[0].get(part)
    text = holder.get("content") if isinstance(holder, dict) else choices[0].get("text")
    return text if isinstance(text, str) else ""


class Chunk:
    """One event of a streamed answer.

    Attributes:
        data: The event's data as bytes, without any `data: ` framing: a JSON object.
        commits: Whether this is useful output, after which nobody else may be asked.
    """

    __slots__ = ("_body", "commits", "data")

    def __init__(
        self, data: bytes, *, body: dict[str, Any] | None = None, commits: bool = True
    ) -> None:
        self.data = data
        self.commits = commits
        self._body = body

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of this event; parsed when first asked for.

        Raises:
            ValueError: If the data is not JSON.
        """
        if self._body is None:
            self._body = json.loads(self.data)
        return self._body

    @property
    def text(self) -> str:
        """The text that this chunk adds to the first choice; often empty."""
        return _first_text(self.body, "delta")

    @property
    def usage(self) -> Usage | None:
        """Tokens so far, on the chunks that say so.

        Raises:
            ValueError: If the data is not JSON.
        """
        body = self.body
        return Usage.from_body(body) if isinstance(body, dict) else None

    def __repr__(self) -> str:
        return f"Chunk({len(self.data)} bytes, commits={self.commits})"
