"""A provider that follows a script, and routers over such providers."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import anyio
import anyio.lowlevel

from engine import (
    Attempt,
    BaseProvider,
    Chunk,
    ChunkSource,
    GatewayConfig,
    Operation,
    ProviderConfig,
    ProviderRegistry,
    Response,
    Router,
)

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@dataclass(frozen=True, slots=True)
class Ok:
    """Answer with a text, after some seconds; a stream gives a role, the text, and the end."""

    text: str = "hello"
    after: float = 0.0
    tokens: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Instant:
    """Answer without giving the event loop a turn."""

    text: str = "hello"


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise an error, after some seconds."""

    error: BaseException | type[BaseException]
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer; when cancelled, take `clean_up` seconds that cannot be cancelled."""

    clean_up: float = 0.0


@dataclass(frozen=True, slots=True)
class Stubborn:
    """Swallow the cancellation, go on for some seconds, and then do something else."""

    seconds: float
    then: Ok | Fail


@dataclass(frozen=True, slots=True)
class Answer:
    """Give back exactly this object, whatever it is."""

    value: Any


@dataclass(frozen=True, slots=True)
class Headers:
    """Say that the headers came after some seconds, and go on with another step."""

    after: float
    then: Ok | Fail | Hang


class Events:
    """A stream: texts are chunks, numbers are seconds of silence, errors and steps happen."""

    __slots__ = ("items",)

    def __init__(self, *items: Any) -> None:
        self.items = items


Step = Ok | Instant | Fail | Hang | Stubborn | Answer | Headers | Events
Scripted = Step | BaseException | type[BaseException]


@dataclass(slots=True)
class Call:
    """One call that the provider has seen."""

    at: float
    attempt: Attempt
    number: int
    streamed: bool
    trace_headers: Mapping[str, str]
    outcome: str = "running"
    ended_at: float | None = None
    closed: bool = False


def text_chunk(text: str) -> Chunk:
    """A chunk with useful output."""
    return Chunk(json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode())


def role_chunk() -> Chunk:
    """A chunk that says nothing useful yet."""
    data = json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}).encode()
    return Chunk(data, commits=False)


def usage_chunk(given: int, made: int) -> Chunk:
    """A chunk with the tokens of the whole answer."""
    usage = {"prompt_tokens": given, "completion_tokens": made}
    return Chunk(json.dumps({"choices": [], "usage": usage}).encode())


def answer_body(step: Ok | Instant) -> dict[str, Any]:
    """The JSON object of a whole answer."""
    body: dict[str, Any] = {
        "id": "answer-1",
        "model": "real-model",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": step.text}}
            | {"finish_reason": "stop"}
        ],
    }
    if isinstance(step, Ok) and step.tokens:
        given, made = step.tokens
        body["usage"] = {"prompt_tokens": given, "completion_tokens": made}
    return body


class ScriptedProvider(BaseProvider):
    """Plays one step a call; when the script is over, the last argument `then` for ever."""

    operations: ClassVar[frozenset[Operation]] = frozenset(Operation)

    def __init__(
        self,
        name: str = "a",
        *script: Scripted,
        then: Scripted | Callable[[], Scripted] = Ok(),
        **settings: Any,
    ) -> None:
        super().__init__(ProviderConfig.model_validate({"name": name, "type": "mock", **settings}))
        self._script = deque(script)
        self._then = then
        self.calls: list[Call] = []
        self.running = 0
        self.peak = 0
        self.models: list[str] | BaseException = []
        self.asked_for_models = 0
        self.started = 0
        self.closed = 0
        self.watch: Callable[[Attempt], None] | None = None

    @property
    def outcomes(self) -> list[str]:
        """How each call ended, in the order of their beginnings."""
        return [call.outcome for call in self.calls]

    def begin(self, attempt: Attempt, *, streamed: bool) -> tuple[Call, Step]:
        """Note a call and say what is played."""
        call = Call(anyio.current_time(), attempt, attempt.number, streamed, attempt.trace_headers)
        self.calls.append(call)
        self.running += 1
        self.peak = max(self.peak, self.running)
        if self.watch is not None:
            self.watch(attempt)
        return call, self._next()

    def end(self, call: Call, outcome: str) -> None:
        """Note how a call ended, once."""
        if call.ended_at is None:
            call.outcome, call.ended_at = outcome, anyio.current_time()
            self.running -= 1

    def _next(self) -> Step:
        step: Any = self._script.popleft() if self._script else self._then
        if callable(step) and not isinstance(step, type):
            step = step()
        failed = isinstance(step, (BaseException, type))
        result: Step = Fail(step) if failed else step
        return result

    async def send(self, attempt: Attempt) -> Response:
        call, step = self.begin(attempt, streamed=False)
        try:
            response: Response = await play(step, attempt)
        except anyio.get_cancelled_exc_class():
            self.end(call, "cancelled")
            raise
        except BaseException:
            self.end(call, "failed")
            raise
        self.end(call, "ok")
        return response

    def stream(self, attempt: Attempt) -> ChunkSource:
        return ScriptedStream(self, attempt)

    async def list_models(self) -> list[str]:
        self.asked_for_models += 1
        await anyio.lowlevel.checkpoint()
        if isinstance(self.models, BaseException):
            raise self.models
        return self.models

    async def start(self) -> None:
        self.started += 1

    async def aclose(self) -> None:
        self.closed += 1


class ChatOnlyProvider(ScriptedProvider):
    """Offers chat and nothing else."""

    operations = frozenset({Operation.CHAT})


async def wait(seconds: float) -> None:
    """Wait, or at least give the others a turn."""
    if seconds:
        await anyio.sleep(seconds)
    else:
        await anyio.lowlevel.checkpoint()


async def play(step: Step, attempt: Attempt) -> Any:
    """Do what the step says; the result is an answer."""
    match step:
        case Ok():
            await wait(step.after)
            return Response(answer_body(step))
        case Instant():
            return Response(answer_body(step))
        case Answer():
            return step.value
        case Headers():
            await wait(step.after)
            attempt.headers_received()
            return await play(step.then, attempt)
        case Stubborn():
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(step.seconds)
                    return await play(step.then, attempt)
        case Fail() | Hang():
            await interrupt(step)
        case Events():
            raise TypeError("events are for streams")
    return None


async def interrupt(step: Fail | Hang) -> None:
    """Fail, or hang until cancelled."""
    if isinstance(step, Fail):
        await wait(step.after)
        error = step.error
        raise error if isinstance(error, BaseException) else error(f"scripted {error.__name__}")
    try:
        await anyio.sleep_forever()
    finally:
        if step.clean_up:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(step.clean_up)


class ScriptedStream:
    """A stream by a script; nothing happens before the first read."""

    def __init__(self, provider: ScriptedProvider, attempt: Attempt) -> None:
        self._provider = provider
        self._attempt = attempt
        self._call: Call | None = None
        self._items: deque[Any] = deque()
        self._reading = False

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Chunk:
        assert not self._reading, "a stream is read by one task at a time"
        self._reading = True
        try:
            return await self._read()
        finally:
            self._reading = False

    async def _read(self) -> Chunk:
        if self._call is None:
            self._call, step = self._provider.begin(self._attempt, streamed=True)
            self._items.extend(as_events(step))
        try:
            while self._items:
                chunk = await self._play_item(self._items.popleft())
                if chunk is not None:
                    return chunk
        except anyio.get_cancelled_exc_class():
            self._provider.end(self._call, "cancelled")
            raise
        except BaseException:
            self._provider.end(self._call, "failed")
            raise
        self._provider.end(self._call, "ok")
        raise StopAsyncIteration

    async def _play_item(self, item: Any) -> Chunk | None:
        if isinstance(item, (int, float)):
            await wait(item)
        elif isinstance(item, str):
            await anyio.lowlevel.checkpoint()
            return text_chunk(item)
        elif isinstance(item, Chunk):
            return item
        elif isinstance(item, (BaseException, type)):
            await interrupt(Fail(item))
        else:
            await play(item, self._attempt)
        return None

    async def aclose(self) -> None:
        assert not self._reading, "a stream is closed only while nobody reads it"
        if self._call is not None:
            self._call.closed = True
            self._provider.end(self._call, "closed early")


def as_events(step: Step) -> tuple[Any, ...]:
    """What a stream gives for a step."""
    match step:
        case Events():
            return step.items
        case Ok():
            tail = (usage_chunk(*step.tokens),) if step.tokens else ()
            return (step.after, role_chunk(), step.text, *tail)
        case Instant():
            return (text_chunk(step.text),)
        case _:
            return (step,)


def make_router(*providers: BaseProvider, tracer_provider: Any = None, **settings: Any) -> Router:
    """A router over these providers; `settings` are those of the configuration file."""
    registry = ProviderRegistry()
    for provider in providers:
        registry.register_provider(provider.name, provider)
    config = GatewayConfig.model_validate(
        {"seed": 7, "providers": [provider.config for provider in providers], **settings}
    )
    return Router(config, registry=registry, tracer_provider=tracer_provider)


def assert_settled(router: Router, **outcomes: int) -> None:
    """Nothing is in flight, nothing was lost, and the outcomes are exactly these."""
    status = router.status()
    assert status.ledger.in_flight == 0
    assert status.ledger.conservation_error == 0
    counted = {outcome.value: count for outcome, count in status.ledger.outcomes.items() if count}
    assert counted == outcomes
    for actor in status.actors:
        assert actor.in_flight == 0
        assert actor.mailbox.depth == 0
        mailbox = actor.mailbox
        assert mailbox.offered == mailbox.taken + mailbox.withdrawn


async def until(condition: Callable[[], bool], *, turns: int = 200) -> None:
    """Give the others turns until the condition holds."""
    for _ in range(turns):
        if condition():
            return
        await anyio.lowlevel.checkpoint()
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - there is no event for any condition
            await anyio.sleep(0.005)
