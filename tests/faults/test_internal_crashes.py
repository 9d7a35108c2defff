"""Adapters that raise anything, actors that crash, and errors in what handles errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fault_calls import CANARY_PROMPT
from fault_table import Row, shows
from gateway_process import GatewayProcess
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from scripted import (
    CHAT,
    Events,
    Fail,
    Hang,
    Ok,
    Scripted,
    ScriptedProvider,
    assert_settled,
    make_router,
    until,
)

from engine import (
    ActorCrashedError,
    ActorState,
    AdapterError,
    GatewayConfig,
    GatewayError,
    ProviderConfig,
    ProviderFactory,
    Replay,
    Router,
    StreamTruncatedError,
)
from engine.actor import ProviderActor

Virtual = Callable[..., None]

LOOPS = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True}), ("trio", {})],
    ids=["asyncio", "uvloop", "trio"],
)


class Crash(BaseException):
    """What no adapter should raise: it goes past `except Exception`."""


class HostileError(Exception):
    """An error that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError(CANARY_PROMPT)

    __repr__ = __str__


def deep() -> RecursionError:
    """A real one, with its thousand frames."""

    def call() -> None:
        call()

    try:
        call()
    except RecursionError as error:
        return error
    raise AssertionError


BUGS: list[Callable[[], BaseException]] = [
    lambda: KeyError(CANARY_PROMPT),
    deep,
    MemoryError,
    lambda: SystemExit(3),
    lambda: ExceptionGroup(CANARY_PROMPT, [ValueError(CANARY_PROMPT)]),
    lambda: UnicodeDecodeError("utf-8", CANARY_PROMPT.encode(), 0, 1, "no"),
    StopIteration,
    StopAsyncIteration,
    TimeoutError,
    HostileError,
]


@pytest.mark.parametrize("streamed", [False, True])
@shows(Row(
    "N1", "an adapter raises what it should not", "502 `broken`; streamed after the first event: "
    "an error event `stream_truncated`", "elsewhere; where repeating is allowed", "maybe",
    "a failure", "The error is named by its type; its text is in no answer and no log.",
))  # fmt: skip
async def test_n1_adapter_raises_anything(
    caplog: pytest.LogCaptureFixture, *, streamed: bool
) -> None:
    """N1: the request fails or goes elsewhere, the actor lives, and no text gets out."""
    for make in BUGS:
        # A list of events does what it holds when it is read.
        step: Any = Events(make()) if streamed else Fail(make())
        bad = ScriptedProvider("bad", step, step)
        good = ScriptedProvider("good")
        alone = {"name": "alone", "targets": [{"provider": "bad"}]}
        both = {
            "name": "both",
            "targets": [{"provider": "bad"}, {"provider": "good", "tier": 1}],
            "retries": {"repeat_maybe_accepted": "always"},
        }
        async with make_router(bad, good, models=[alone, both]) as router:
            if streamed and isinstance(make(), StopAsyncIteration):
                # From a stream that is how it says that it is over.
                continue
            assert await text_of(router, "both", streamed=streamed) == "hello"
            with pytest.raises(AdapterError) as caught:
                await text_of(router, "alone", streamed=streamed)
            assert (caught.value.status, caught.value.provider) == (502, "bad")
            assert CANARY_PROMPT not in caught.value.message
            assert [actor.restarts for actor in router.status().actors] == [0, 0]
            assert router.status().actors[0].failed == {"broken": 2}
        assert_settled(router, completed=1, failed=1)
    assert CANARY_PROMPT not in caplog.text


async def text_of(router: Router, model: str, *, streamed: bool) -> str:
    """What is answered, whole or in parts."""
    body = {**CHAT, "model": model}
    if not streamed:
        return (await router.complete(body)).text or ""
    async with router.stream(body) as stream:
        return "".join([chunk.text async for chunk in stream])


async def test_n1_adapter_raises_after_the_commit() -> None:
    """N1: a stream whose adapter breaks says so, and never ends cleanly."""
    for make in BUGS:
        if isinstance(make(), StopAsyncIteration):
            continue
        provider = ScriptedProvider("a", Events("one", make()))
        async with make_router(provider) as router:
            async with router.stream(CHAT) as stream:
                assert (await anext(stream)).text == "one"
                with pytest.raises(StreamTruncatedError) as caught:
                    await anext(stream)
            assert CANARY_PROMPT not in caught.value.message
            assert router.status().actors[0].restarts == 0
        assert provider.calls[0].closed
        assert_settled(router, truncated=1)


@LOOPS
@shows(Row(
    "N2", "an actor crashes", "502 `actor_crashed`; a stream that has begun: an error event "
    "`stream_truncated`", "elsewhere: what waited always, what was under way where repeating is "
    "allowed", "maybe, if a call was under way", "not at all",
    "The actor is restarted after 0.1 s, doubling to 5 s, with jitter.",
))  # fmt: skip
async def test_n2_actor_crashes() -> None:
    """N2: what waited goes elsewhere, what ran counts as perhaps executed, and it comes back."""
    limits = {"concurrency": 2, "queue": 10}
    bad = ScriptedProvider("bad", Hang(), Fail(Crash, after=0.03), limits=limits)
    good = ScriptedProvider("good")
    targets = [{"provider": "bad"}, {"provider": "good", "tier": 1}]
    models = [{"name": "m", "targets": targets, "retries": {"repeat_maybe_accepted": "never"}}]
    heard: list[str] = []
    replays: list[Replay] = []

    async def ask() -> None:
        try:
            response = await router.complete(CHAT)
        except ActorCrashedError as error:
            replays.append(error.replay)
        else:
            heard.append(response.provider)

    async with make_router(bad, good, models=models) as router:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(ask)
        assert heard == ["good"] * 6
        assert replays == [Replay.MAYBE_ACCEPTED] * 2
        with anyio.fail_after(10):
            while router.status().actors[0].state is not ActorState.SERVING:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert router.status().actors[0].restarts == 1
        assert (await router.complete(CHAT)).provider == "bad"
    assert_settled(router, completed=7, failed=2)


@shows(Row(
    "N3", "an actor crashes at every start", "503 `down`", "elsewhere", "nothing", "not at all",
    "After five restarts within 30 s it is down for 60 s, and then tried again. Others are not "
    "touched.",
))  # fmt: skip
def test_n3_actor_crashes_at_every_start(
    virtual_time: Virtual, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """N3: an actor that cannot live is taken down, and the others serve all the while."""
    run = ProviderActor.run

    async def die(actor: ProviderActor) -> None:
        if actor.name != "bad":
            await run(actor)
            return
        await anyio.lowlevel.checkpoint()
        raise KeyError(CANARY_PROMPT)

    monkeypatch.setattr(ProviderActor, "run", die)

    async def main() -> None:
        bad, good = ScriptedProvider("bad", weight=1e6), ScriptedProvider("good")
        slowest = 0.0
        # A router waits until each actor serves or has failed to: this one has failed.
        async with make_router(bad, good) as router:
            begun, states = anyio.current_time(), set()
            while anyio.current_time() - begun < 200:
                asked = anyio.current_time()
                assert (await router.complete(CHAT)).provider == "good"
                slowest = max(slowest, anyio.current_time() - asked)
                states.add(router.status().actors[0].state)
                await anyio.sleep(0.25)
            actor = router.status().actors[0]
            assert states == {ActorState.RESTARTING, ActorState.DOWN}
            # Five restarts, then one a minute.
            assert 6 <= actor.restarts <= 10
            assert (router.status().actors[1].restarts, router.ready) == (0, True)
        assert slowest < 0.01
        assert not bad.calls
        assert_settled(router, completed=len(good.calls))

    virtual_time(main)
    assert "actor bad crashed: KeyError" in caplog.text


N4_PROGRAM = """
from engine import BaseProvider, Operation, ProviderFactory
from engine.supervisor import Supervisor

class Crash(BaseException):
    pass

class Crashing(BaseProvider):
    operations = frozenset(Operation)

    async def send(self, attempt):
        raise Crash

    def stream(self, attempt):
        raise Crash

def broken(self, crashes):
    raise RuntimeError("canary-prompt-5f21")

ProviderFactory.register_type("crashing", Crashing)
Supervisor._pause = broken
from adapters.cli.main import main
main()
"""


@shows(Row(
    "N4", "the supervisor of the actors crashes", "502 `actor_crashed`, then nobody listens",
    "nothing", "maybe, if a call was under way", "not at all",
    "The process ends at once with exit code 1, so that whoever watches it starts another one.",
))  # fmt: skip
def test_n4_supervisor_crashes(tmp_path: Path) -> None:
    """N4: without its engine the process ends with an error within five seconds."""
    config = {"providers": [{"name": "a", "type": "crashing"}]}
    with GatewayProcess(tmp_path, config, program=N4_PROGRAM) as gateway:
        answer = gateway.ask()
        begun = time.perf_counter()
        assert (answer.status, answer.json["error"]["code"]) == (502, "actor_crashed")
        assert gateway.wait(20) == 1
        # Five seconds are promised; the rest is for a busy machine.
        assert time.perf_counter() - begun < 10
    said = "\n".join(gateway.said)
    assert "the app died while it served: RuntimeError" in said
    assert "Traceback" not in said
    assert CANARY_PROMPT not in said


class Clumsy(ScriptedProvider):
    """Raises in whatever it is asked to clean up."""

    async def aclose(self) -> None:
        await super().aclose()
        raise KeyError(CANARY_PROMPT)

    def stream(self, attempt: Any) -> Any:
        source = super().stream(attempt)
        aclose = source.aclose

        async def close() -> None:
            await aclose()
            raise ValueError(CANARY_PROMPT)

        source.aclose = close  # type: ignore[method-assign]
        return source


class ClumsyByName(Clumsy):
    """The same, as the factory makes it."""

    def __init__(self, config: ProviderConfig) -> None:
        super().__init__(config.name)
        self.config = config


class BrokenSpans(SpanProcessor):
    """Raises whenever a span begins or ends."""

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        raise RuntimeError(CANARY_PROMPT)

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError(CANARY_PROMPT)


@LOOPS
@shows(Row(
    "N28", "an error in what cleans up, or in what records spans", "the answer, or the first error",
    "as after the first error", "as after the first error", "a failure",
    "Telemetry that fails is told in the log each time that its failures have doubled.",
))  # fmt: skip
async def test_n28_errors_while_handling_errors() -> None:
    """N28: errors in `finally` blocks and in span processors keep no request from its end."""
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(BrokenSpans())
    limits = {"concurrency": 1, "queue": 0}
    script: list[Scripted] = [
        Ok(),
        Events("one", "two"),
        Events(KeyError(1)),
        Fail(KeyError(1)),
        Hang(),
    ]
    clumsy = Clumsy("a", *script, limits=limits)
    async with make_router(clumsy, tracer_provider=tracer_provider) as router:
        assert await text_of(router, "m", streamed=False) == "hello"
        assert await text_of(router, "m", streamed=True) == "onetwo"
        for streamed in (True, False):
            with pytest.raises(GatewayError):
                await text_of(router, "m", streamed=streamed)
        with anyio.move_on_after(0.02):
            await router.complete(CHAT)
        await until(lambda: router.status().actors[0].in_flight == 0)
        assert await text_of(router, "m", streamed=True) == "hello"
        assert router.status().actors[0].restarts == 0
    assert_settled(router, completed=3, failed=2, cancelled=1)
    tracer_provider.shutdown()


async def test_n28_provider_that_cannot_close(caplog: pytest.LogCaptureFixture) -> None:
    """N28: a provider that raises when it is closed keeps the router from nothing."""
    ProviderFactory.register_type("clumsy", ClumsyByName)
    try:
        config = {"providers": [{"name": "a", "type": "clumsy"}, {"name": "b", "type": "mock"}]}
        with caplog.at_level(logging.WARNING):
            async with Router(GatewayConfig.model_validate(config)) as router:
                assert router.ready
    finally:
        ProviderFactory.unregister_type("clumsy")
    assert "provider a failed to close: KeyError" in caplog.text
