"""From the chunks of an OpenAI-style stream to the answer that was not streamed.

A caller that wants a whole answer can be served by a stream upstream, so that the limits
on the first event and on silence protect it too. What it gets must look as if the
provider had not streamed: this is the way back, for chats and text completions.

What the chunks of one choice say is joined: texts and lists grow, tool calls grow by
their index, names and ids stand once. Of what stands beside the choices the latest counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from engine.errors import BrokenError
from engine.operations import Chunk, Operation, Request, Response

MAX_BYTES: Final = 52_428_800
"""Bytes of all chunks of one answer together, 50 MiB: some 200,000 chunks of one token."""

OBJECTS: Final = {Operation.CHAT: "chat.completion", Operation.COMPLETIONS: "text_completion"}
"""What the field `object` of a whole answer says, for the operations that stream."""

# Not split over chunks; some providers send them with each one.
_ONCE: Final = frozenset({"role", "id", "type", "name", "format"})
# Of the choice itself; everything else beside `delta` is a state, and the latest counts.
_GROWING: Final = frozenset({"text", "logprobs"})
_MAX_INDEXED: Final = 1_024
# Means something on the way only: padding that hides the length of each chunk's text.
_TRANSIENT: Final = frozenset({"obfuscation"})


def may_stream_upstream(request: Request) -> bool:
    """Whether the answer to a request can be put together from a stream.

    Not for embeddings, for spoken answers (their formats differ when streamed), and for
    the best of several completions, which cannot be chosen from while they come.
    """
    if request.operation not in OBJECTS:
        return False
    body = request.body
    modalities = body.get("modalities")
    if body.get("audio") is not None or (isinstance(modalities, list) and "audio" in modalities):
        return False
    best_of = body.get("best_of")
    return best_of is None or best_of == body.get("n", 1)


def as_upstream_stream(request: Request) -> Request:
    """The same request as a stream that ends with its usage; see `may_stream_upstream`.

    Other fields of `stream_options` stay as they are. The result has no `raw`.
    """
    options = request.body.get("stream_options")
    if options is None or isinstance(options, dict):
        options = {**(options or {}), "include_usage": True}
    body = {**request.body, "stream": True, "stream_options": options}
    return type(request).from_body(body)


def assemble(request: Request, chunks: Iterable[Chunk]) -> Response:
    """Put a whole answer together from all chunks of a stream.

    Args:
        request: What was asked: a chat or a text completion.
        chunks: The chunks of a complete stream, in their order.

    Raises:
        BrokenError: If they are no stream of such an answer, or are too large together.
    """
    assembler = Assembler(request)
    for chunk in chunks:
        assembler.add(chunk)
    return assembler.response()


class Assembler:
    """Puts a whole answer together, chunk after chunk.

    Args:
        request: What was asked: a chat or a text completion.
        provider: Name of the provider, for errors.
        max_bytes: The most that all chunks may have together, bytes.

    Raises:
        ValueError: If the operation is one that does not stream.
    """

    __slots__ = ("_body", "_choices", "_max_bytes", "_object", "_part", "_provider", "_size")

    def __init__(
        self, request: Request, *, provider: str | None = None, max_bytes: int = MAX_BYTES
    ) -> None:
        if request.operation not in OBJECTS:
            msg = f"answers of {request.operation.value!r} are not put together from chunks"
            raise ValueError(msg)
        self._object = OBJECTS[request.operation]
        self._part = "message" if request.operation is Operation.CHAT else "text"
        self._provider = provider
        self._max_bytes = max_bytes
        self._size = 0
        self._body: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk.

        Raises:
            BrokenError: If it is no chunk of such an answer, or is one too many.
        """
        self._size += len(chunk.data)
        if self._size > self._max_bytes:
            self._fail(f"sent more than {self._max_bytes} bytes for one answer")
        try:
            event = _DECODER.decode(chunk.data.decode())
            if type(event) is not dict:
                self._fail("sent an event that is no JSON object")
            self._take(event)
        except (ValueError, RecursionError):
            # No cause: the text of a decoding error can hold the provider's answer.
            event = None
        if event is None:
            self._fail("sent an event that is no part of an answer")

    def response(self) -> Response:
        """The answer from the chunks so far; the caller knows whether they are all.

        Raises:
            BrokenError: If there is not even a beginning of a choice, or one is nested too deep.
        """
        if not self._choices:
            self._fail("ended its stream without any choices")
        try:
            choices = [
                choice.whole(index, self._part) for index, choice in sorted(self._choices.items())
            ]
        except RecursionError:
            choices = []
        if not choices:
            self._fail("sent an answer that is nested too deep")
        return Response({"object": self._object, **self._body, "choices": choices})

    def _take(self, event: dict[str, Any]) -> None:
        for key, value in event.items():
            if key == "choices":
                if value is not None and type(value) is not list:
                    msg = "no choices"
                    raise ValueError(msg)
                for choice in value or ():
                    self._take_choice(choice)
                # Keeps its place among the fields.
                self._body.setdefault(key, None)
            elif key == "object" or key in _TRANSIENT:
                continue
            elif value is not None and (value != "" or key not in self._body):
                # Some providers send a first event whose fields are empty.
                self._body[key] = value

    def _take_choice(self, choice: Any) -> None:
        index = choice.get("index", 0) if type(choice) is dict else None
        if type(index) is not int or index < 0:
            msg = "no choice"
            raise ValueError(msg)
        found = self._choices.get(index)
        if found is None:
            found = self._choices[index] = _Choice()
        found.take(choice)

    def _fail(self, what: str) -> NoReturn:
        raise BrokenError(f"provider {self._provider!r} {what}", provider=self._provider)


class _Text:
    """A text that grows; joined once, as adding to a string would copy it each time."""

    __slots__ = ("parts",)

    def __init__(self, first: str) -> None:
        self.parts = [first]

    def whole(self) -> str:
        text = "".join(self.parts)
        try:
            text.encode()
        except UnicodeEncodeError:
            # Two chunks held half a surrogate pair each: together they are a character.
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return text


class _Choice:
    """One choice as far as it is known."""

    __slots__ = ("_delta", "_growing", "_state")

    def __init__(self) -> None:
        self._delta: dict[str, Any] = {}
        self._growing: dict[str, Any] = {}
        self._state: dict[str, Any] = {}

    def take(self, choice: dict[str, Any]) -> None:
        """Add what one chunk says.

        Raises:
            ValueError: If it does not fit to what was there.
        """
        for key, value in choice.items():
            if key == "delta":
                if value is not None and type(value) is not dict:
                    msg = "no delta"
                    raise ValueError(msg)
                _merge(self._delta, value or {})
            elif key in _GROWING or type(value) is list:
                _merge(self._growing, {key: value}, by_index=False)
            elif key != "index" and (value is not None or key not in self._state):
                self._state[key] = value

    def whole(self, index: int, part: str) -> dict[str, Any]:
        """The choice of an answer that was not streamed."""
        choice: dict[str, Any] = {"index": index}
        if part == "message":
            if self._delta or "message" not in self._state:
                choice[part] = self._message()
        else:
            choice[part] = ""
        choice |= {key: _whole(value) for key, value in self._growing.items()}
        choice |= {key: value for key, value in self._state.items() if key not in choice}
        choice.setdefault("finish_reason", None)
        if choice.get("text", "") is None:
            choice["text"] = ""
        return choice

    def _message(self) -> dict[str, Any]:
        delta: dict[str, Any] = _whole(self._delta)
        message = {"role": delta.pop("role", None) or "assistant"}
        message["content"] = delta.pop("content", None)
        calls = delta.get("tool_calls")
        if isinstance(calls, list) and all(type(call) is dict for call in calls):
            calls.sort(key=_index)
            for call in calls:
                # Where it stands in the list says the same.
                call.pop("index", None)
        return message | delta


def _merge(known: dict[str, Any], news: dict[str, Any], *, by_index: bool = True) -> None:
    """Add the fields of a chunk to those of the chunks before it.

    Raises:
        ValueError: If a text or a list goes on as something else.
    """
    for key, value in news.items():
        before = known.get(key)
        if value is None:
            known.setdefault(key, None)
        elif before is None or type(before) in (bool, int, float):
            known[key] = _growing(key, value, by_index=by_index)
        elif type(before) is str:
            # A name that was empty at first, or is repeated.
            known[key] = before or value
        elif type(before) is _Text and type(value) is str:
            before.parts.append(value)
        elif type(before) is dict and type(value) is dict:
            _merge(before, value, by_index=by_index)
        elif type(before) is list and type(value) is list:
            _extend(before, value, by_index=by_index)
        else:
            msg = "a field changes its type"
            raise ValueError(msg)


def _growing(key: str, value: Any, *, by_index: bool) -> Any:
    """A value of a chunk in a shape to which others can be added."""
    if type(value) is str:
        return value if key in _ONCE else _Text(value)
    if type(value) is dict:
        known: dict[str, Any] = {}
        _merge(known, value, by_index=by_index)
        return known
    if type(value) is list:
        items: list[Any] = []
        _extend(items, value, by_index=by_index)
        return items
    return value


def _extend(known: list[Any], news: list[Any], *, by_index: bool) -> None:
    """Add the items of a list: to the item with the same index if they have one."""
    if not by_index:
        known += news
        return
    for item in news:
        before = _same(known, item) if type(item) is dict else None
        if before is None:
            known.append(_growing("", item, by_index=True))
        else:
            _merge(before, {key: value for key, value in item.items() if key != "index"})


def _same(known: list[Any], item: dict[str, Any]) -> dict[str, Any] | None:
    """The item that another one goes on with, or None if it is a new one."""
    index, name = item.get("index"), item.get("id")
    if type(index) is int:
        if len(known) > _MAX_INDEXED:
            msg = "too many items"
            raise ValueError(msg)
        found = (x for x in reversed(known) if type(x) is dict and x.get("index") == index)
        before = next(found, None)
    else:
        # Some providers leave the index out: then the id, or the lack of it, tells.
        last = known[-1] if known else None
        before = last if type(last) is dict and "function" in item else None
    # Some give each of several whole calls the same index: then the id tells.
    if before is None or (name and before.get("id") and name != before["id"]):
        return None
    return before


def _index(item: dict[str, Any]) -> int:
    index = item.get("index")
    return index if type(index) is int else 0


def _whole(value: Any) -> Any:
    if type(value) is _Text:
        return value.whole()
    if type(value) is dict:
        return {key: _whole(item) for key, item in value.items()}
    if type(value) is list:
        return [_whole(item) for item in value]
    return value


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON number"
    raise ValueError(msg)


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
