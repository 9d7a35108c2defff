"""Keys, fingerprints, and whole answers that are run once and kept."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from scripted import until

from engine import (
    ChatRequest,
    CompletionRequest,
    ConnectError,
    DeadlineExceededError,
    InvalidRequestError,
    Request,
    Response,
    RouterClosedError,
)
from engine.config import IdempotencyConfig
from engine.idempotency import check_key, fingerprint
from engine.idempotency_store import IdempotencyStore
from engine.operations import Replayed

ASK = ChatRequest("m", [{"role": "user", "content": "hi"}])
OTHER = ChatRequest("m", [{"role": "user", "content": "ho"}])


class Clock:
    """The loop's clock, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return anyio.current_time() + self.ahead


class Work:
    """Stands for the run of a request: waits until it is told how to end."""

    def __init__(self, answer: Response | Exception | None = None) -> None:
        self.gate = anyio.Event()
        self.runs = 0
        self.running = 0
        self.cancelled = 0
        self.clean_up: anyio.Event | None = None
        self.answer = answer or response()

    async def __call__(self) -> Response:
        self.runs += 1
        self.running += 1
        try:
            await self.gate.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            if self.clean_up is not None:
                with anyio.CancelScope(shield=True):
                    await self.clean_up.wait()
            raise
        finally:
            self.running -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Ready(Work):
    """Work that ends at once."""

    def __init__(self, answer: Response | Exception | None = None) -> None:
        super().__init__(answer)
        self.gate.set()


def response(text: str = "hello", *, raw: bool = True) -> Response:
    body = {"model": "real", "choices": [{"message": {"content": text}}]}
    made = Response(body, json.dumps(body).encode() if raw else None)
    made.provider, made.request_id, made.attempts, made.upstream_seconds = "a", "req-1", 2, 1.5
    made.fallbacks = ("m-2",)
    return made


class Bench:
    """A store, and a task group that stands for the router's."""

    def __init__(self, group: anyio.abc.TaskGroup, **settings: Any) -> None:
        self.clock = Clock()
        self.group = group
        self.store = IdempotencyStore(
            IdempotencyConfig(**settings), clock=self.clock, start=group.start_soon
        )

    async def ask(
        self,
        work: Work,
        *,
        key: str = "k",
        scope: str = "",
        request: Request = ASK,
        deadline: float | None = None,
    ) -> Response:
        return await self.store.complete(scope, key, request, work, deadline=deadline)

    async def leave_when_running(self, work: Work, *, key: str = "k") -> None:
        """Ask, and be cancelled once the work has begun."""
        async with anyio.create_task_group() as callers:
            callers.start_soon(partial(self.ask, work, key=key))
            await until(lambda: work.running == 1)
            callers.cancel_scope.cancel()


@asynccontextmanager
async def bench(**settings: Any) -> AsyncGenerator[Bench, None]:
    async with anyio.create_task_group() as group:
        made = Bench(group, **settings)
        yield made
        await until(lambda: made.store.status().running == 0)


async def catch(into: list[Any], ask: Callable[[], Any]) -> None:
    """Keep the answer or the error of a caller."""
    try:
        into.append(await ask())
    except Exception as error:  # noqa: BLE001 - it is what the test looks at
        into.append(error)


# ── keys and fingerprints ────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["k", "x" * 255, "a b~!", "9f3c-1d"])
def test_printable_ascii_is_a_key(key: str) -> None:
    """Up to 255 characters are accepted as they are."""
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\n", "\x7f", "a\x00b"])
def test_anything_else_is_no_key(key: str) -> None:
    """The refusal names the header field, and does not repeat the key."""
    with pytest.raises(InvalidRequestError) as caught:
        check_key(key)
    assert (caught.value.status, caught.value.param) == (400, "Idempotency-Key")
    assert not key or key not in caught.value.message


def test_fingerprint_tells_requests_apart() -> None:
    """Operation, streaming and every byte of the body count."""
    body = {"model": "m", "messages": [], "prompt": "x"}
    raw = json.dumps(body).encode()
    marks = [
        fingerprint(ChatRequest.from_body(body)),
        fingerprint(CompletionRequest.from_body(body)),
        fingerprint(ChatRequest.from_body({**body, "stream": True})),
        fingerprint(ChatRequest.from_body({**body, "n": 1})),
        fingerprint(ChatRequest.from_body(body, raw)),
        fingerprint(ChatRequest.from_body(body, raw + b" ")),
    ]
    assert len(set(marks)) == len(marks)
    assert {len(mark) for mark in marks} == {32}


def test_fingerprint_of_the_same_request_is_the_same() -> None:
    """Without bytes, the order of the fields does not count."""
    one = ChatRequest.from_body({"model": "m", "messages": [], "n": 1, "x": "\ud83d"})
    two = ChatRequest.from_body({"x": "\ud83d", "n": 1, "messages": [], "model": "m"})
    assert fingerprint(one) == fingerprint(two)


def test_fingerprint_needs_json() -> None:
    """A body that cannot be compared is the caller's mistake."""
    with pytest.raises(InvalidRequestError) as caught:
        fingerprint(ChatRequest("m", [], x={1, 2}))
    assert caught.value.code == "not_json"


# ── running once ─────────────────────────────────────────────────────────────────


async def test_first_caller_gets_the_very_answer() -> None:
    """Nothing is added to the answer of the request that was run."""
    async with bench() as b:
        work = Ready()
        got = await b.ask(work)
    assert got is work.answer
    assert got.replayed is None
    assert got.attempts == 2


@pytest.mark.parametrize("raw", [True, False])
async def test_second_request_joins_the_running_one(raw: bool) -> None:
    """Both get the same answer from one run; the one that joined is told so."""
    got: list[Response] = []
    async with bench() as b:
        work = Work(response(raw=raw))
        async with anyio.create_task_group() as callers:
            callers.start_soon(catch, got, lambda: b.ask(work))
            await until(lambda: work.running == 1)
            callers.start_soon(catch, got, lambda: b.ask(work))
            await until(lambda: b.store.status().joined == 1)
            work.gate.set()
        first, second = sorted(got, key=lambda one: one.replayed is not None)
        assert work.runs == 1
    assert (first.body, first.raw) == (second.body, second.raw)
    assert second.body is not first.body
    assert second.replayed is Replayed.JOINED
    assert (second.provider, second.request_id, second.attempts) == ("a", "req-1", 0)
    assert (second.upstream_seconds, second.fallbacks) == (1.5, ("m-2",))


@pytest.mark.parametrize("raw", [True, False])
async def test_later_request_gets_the_kept_answer(raw: bool) -> None:
    """The same bytes, without a run; what the first caller does to its answer stays its own."""
    async with bench() as b:
        work = Ready(response(raw=raw))
        first = await b.ask(work)
        body = json.loads(json.dumps(first.body))
        first.body.clear()
        second = await b.ask(work)
        assert work.runs == 1
        assert b.store.status().stored == 1
    assert (second.body, second.raw) == (body, first.raw)
    assert second.replayed is Replayed.STORED
    assert (second.attempts, second.upstream_seconds) == (0, 0.0)


async def test_answer_is_kept_for_its_time() -> None:
    """After `ttl` seconds the request runs anew, and nothing of the old answer is left."""
    async with bench(ttl=10) as b:
        work = Ready()
        await b.ask(work)
        b.clock.ahead = 9
        await b.ask(work)
        assert work.runs == 1
        b.clock.ahead = 11
        assert b.store.status().entries == b.store.status().bytes == 0
        await b.ask(work)
        assert work.runs == 2


async def test_use_does_not_lengthen_the_time() -> None:
    """Only the age of the answer counts, so a caller that asks often does not keep it."""
    async with bench(ttl=10) as b:
        work = Ready()
        for ahead in (0, 6, 12):
            b.clock.ahead = ahead
            await b.ask(work)
        assert work.runs == 2


async def test_scopes_have_nothing_in_common() -> None:
    """Two tenants may use the same key for different requests."""
    async with bench() as b:
        one, two = Ready(response("one")), Ready(response("two"))
        assert (await b.ask(one, scope="x")).text == "one"
        assert (await b.ask(two, scope="y", request=OTHER)).text == "two"


@pytest.mark.parametrize("running", [True, False])
async def test_key_of_another_request_is_refused(running: bool) -> None:
    """422, whether the first request runs or its answer is kept."""
    async with bench() as b, anyio.create_task_group() as callers:
        work = Work()
        callers.start_soon(b.ask, work)
        await until(lambda: work.running == 1)
        if not running:
            work.gate.set()
            await until(lambda: b.store.status().running == 0)
        with pytest.raises(InvalidRequestError) as caught:
            await b.ask(work, request=OTHER)
        work.gate.set()
    assert (caught.value.status, caught.value.code) == (422, "idempotency_key_reused")
    assert caught.value.param == "Idempotency-Key"


async def test_wrong_key_is_refused_before_anything_runs() -> None:
    """400."""
    async with bench() as b:
        work = Ready()
        with pytest.raises(InvalidRequestError):
            await b.ask(work, key="\n")
        assert work.runs == 0


# ── failures ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [ConnectError("down"), InvalidRequestError("no"), KeyError("x")])
async def test_failure_is_told_to_all_and_not_kept(error: Exception) -> None:
    """All who waited get the same error; whoever comes later runs the request anew."""
    got: list[Any] = []
    async with bench() as b:
        work = Work(error)
        async with anyio.create_task_group() as callers:
            for _ in range(3):
                callers.start_soon(catch, got, lambda: b.ask(work))
            await until(lambda: b.store.status().joined == 2)
            work.gate.set()
        assert all(heard is error for heard in got)
        assert len(got) == 3
        assert b.store.status().entries == 0
        again = Ready()
        assert await b.ask(again) is again.answer


async def test_shared_error_does_not_grow() -> None:
    """Its traceback is as long for the last caller as for the first."""
    got: list[Any] = []
    async with bench() as b:
        work = Work(ConnectError("down"))
        async with anyio.create_task_group() as callers:
            for _ in range(50):
                callers.start_soon(catch, got, lambda: b.ask(work))
            await until(lambda: b.store.status().joined == 49)
            work.gate.set()
    length, traceback = 0, got[-1].__traceback__
    while traceback is not None:
        length, traceback = length + 1, traceback.tb_next
    assert length < 15


async def test_closing_router_is_told_to_all() -> None:
    """Callers outside of the router's task group hear why there is no answer."""
    got: list[Any] = []
    async with anyio.create_task_group() as callers:
        async with anyio.create_task_group() as group:
            b = Bench(group)
            work = Work()
            for _ in range(2):
                callers.start_soon(catch, got, lambda: b.ask(work))
            await until(lambda: b.store.status().joined == 1)
            group.cancel_scope.cancel()
    assert [type(error) for error in got] == [RouterClosedError] * 2
    assert b.store.status().entries == 0
    assert work.cancelled == 1


async def test_crash_of_the_work_is_told_before_it_takes_the_router_down() -> None:
    """What is no exception ends the router's task group, and nobody waits for ever."""

    class Crash(BaseException):
        pass

    async def crash() -> Response:
        await anyio.lowlevel.checkpoint()
        raise Crash

    got: list[Any] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        async with anyio.create_task_group() as group:
            store = IdempotencyStore(
                IdempotencyConfig(), clock=anyio.current_time, start=group.start_soon
            )
            with anyio.CancelScope(shield=True):
                await catch(got, lambda: store.complete("", "k", ASK, crash))
    assert caught.group_contains(Crash)
    assert [type(error) for error in got] == [RouterClosedError]


async def test_group_that_takes_no_tasks_leaves_no_entry() -> None:
    """If the work cannot be started, the key is free."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("closed")

    store = IdempotencyStore(IdempotencyConfig(), clock=anyio.current_time, start=refuse)
    with pytest.raises(RuntimeError, match="closed"):
        await store.complete("", "k", ASK, Ready())
    assert store.status().entries == 0


# ── leaving ──────────────────────────────────────────────────────────────────────


async def test_first_caller_may_leave() -> None:
    """The work goes on for the one that joined."""
    got: list[Any] = []
    async with bench() as b, anyio.create_task_group() as callers:
        work = Work()
        first = anyio.CancelScope()

        async def leaves() -> None:
            with first:
                await b.ask(work)

        callers.start_soon(leaves)
        await until(lambda: work.running == 1)
        callers.start_soon(catch, got, lambda: b.ask(work))
        await until(lambda: b.store.status().joined == 1)
        first.cancel()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert work.running == 1
        work.gate.set()
    assert got[0].text == "hello"
    assert work.cancelled == 0


async def test_last_caller_takes_the_work_along() -> None:
    """When nobody waits any more the work is cancelled, and the key is free."""
    async with bench() as b:
        work = Work()
        async with anyio.create_task_group() as callers:
            callers.start_soon(b.ask, work)
            callers.start_soon(b.ask, work)
            await until(lambda: work.running == 1 and b.store.status().joined == 1)
            callers.cancel_scope.cancel()
        await until(lambda: work.cancelled == 1)
        assert b.store.status().entries == 0
        assert (await b.ask(Ready())).replayed is None


async def test_caller_that_leaves_at_once_leaves_nothing() -> None:
    """Work that nobody wants when its turn comes is not begun, or cancelled at once."""
    async with bench() as b:
        work = Work()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await b.ask(work)
        await until(lambda: b.store.status().running == 0)
    assert work.runs == work.cancelled
    assert b.store.status().entries == 0


async def test_key_waits_for_the_end_of_abandoned_work() -> None:
    """The work of one key does not run twice at the same time, even while it cleans up."""
    got: list[Any] = []
    async with bench() as b:
        work, again = Work(), Ready()
        work.clean_up = anyio.Event()
        await b.leave_when_running(work)
        async with anyio.create_task_group() as callers:
            callers.start_soon(catch, got, lambda: b.ask(again, request=OTHER))
            callers.start_soon(catch, got, lambda: b.ask(again, request=OTHER))
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            assert (work.running, again.runs) == (1, 0)
            work.clean_up.set()
        assert again.runs == 1
    assert {answer.replayed for answer in got} <= {None, Replayed.JOINED, Replayed.STORED}
    assert len(got) == 2


async def test_caller_that_joins_keeps_its_own_deadline() -> None:
    """It hears by then, and the one that runs is not harmed."""
    got: list[Any] = []
    async with bench() as b, anyio.create_task_group() as callers:
        work = Work()
        callers.start_soon(catch, got, lambda: b.ask(work))
        await until(lambda: work.running == 1)
        with pytest.raises(DeadlineExceededError):
            await b.ask(work, deadline=b.clock() + 0.01)
        work.gate.set()
    assert got == [work.answer]


async def test_deadline_counts_while_abandoned_work_cleans_up() -> None:
    """A key that is not free in time is a deadline that passed."""
    async with bench() as b:
        work = Work()
        work.clean_up = anyio.Event()
        await b.leave_when_running(work)
        with pytest.raises(DeadlineExceededError):
            await b.ask(work, deadline=b.clock() + 0.01)
        work.clean_up.set()


async def test_first_caller_waits_for_what_its_run_says() -> None:
    """The run has the same deadline and knows better what happened."""
    got: list[Any] = []
    async with bench() as b, anyio.create_task_group() as callers:
        work = Work(DeadlineExceededError("after 3 attempts"))
        callers.start_soon(catch, got, lambda: b.ask(work, deadline=b.clock() - 1))
        await until(lambda: work.running == 1)
        work.gate.set()
    assert got == [work.answer]


# ── bounds ───────────────────────────────────────────────────────────────────────


async def test_answer_unused_for_the_longest_goes_first() -> None:
    """Use keeps an answer in the store; the number of entries is the bound."""
    async with bench(entries=2) as b:
        for key in ("a", "b", "a", "c"):
            await b.ask(Ready(), key=key)
        assert (b.store.status().entries, b.store.status().evicted) == (2, 1)
        assert (await b.ask(Ready(), key="a")).replayed is Replayed.STORED
        assert (await b.ask(Ready(), key="b")).replayed is None


async def test_running_requests_are_never_evicted() -> None:
    """When all entries run, a new key is served as if it had none."""
    got: list[Any] = []
    async with bench(entries=2) as b:
        work, more = Work(), Ready()
        async with anyio.create_task_group() as callers:
            for key in ("a", "b"):
                callers.start_soon(catch, got, lambda key=key: b.ask(work, key=key))
            await until(lambda: work.running == 2)
            for _ in range(2):
                assert await b.ask(more, key="c") is more.answer
            assert more.runs == 2
            status = b.store.status()
            assert (status.entries, status.running, status.unrecorded) == (2, 2, 2)
            work.gate.set()
        assert b.store.status().entries == 2


async def test_unrecorded_work_ends_with_its_caller() -> None:
    """A request that is not recorded is cancelled like any other."""
    async with bench(entries=1) as b, anyio.create_task_group() as callers:
        work, more = Work(), Work()
        callers.start_soon(b.ask, work)
        await until(lambda: work.running == 1)
        await b.leave_when_running(more, key="c")
        await until(lambda: more.cancelled == 1)
        work.gate.set()


async def test_bytes_are_bounded() -> None:
    """Older answers make room for the newest."""
    one = response("x" * 1_000)
    assert one.raw is not None
    size = len(one.raw)
    async with bench(max_bytes=10 * size) as b:
        for number in range(15):
            await b.ask(Ready(response("x" * 1_000)), key=str(number))
        status = b.store.status()
    assert (status.entries, status.bytes, status.evicted) == (10, 10 * size, 5)


async def test_large_answer_is_not_kept() -> None:
    """An eighth of the bytes is the most that one may take; those who wait still get it."""
    got: list[Any] = []
    async with bench(max_bytes=8_000) as b:
        await b.ask(Ready(), key="small")
        large = response("x" * 1_000)
        work = Work(large)
        async with anyio.create_task_group() as callers:
            for _ in range(2):
                callers.start_soon(catch, got, lambda: b.ask(work))
            await until(lambda: b.store.status().joined == 1)
            work.gate.set()
        assert {answer.raw for answer in got} == {large.raw}
        assert (b.store.status().entries, b.store.status().evicted) == (1, 0)


async def test_answer_that_is_no_json_is_shared_and_not_kept() -> None:
    """An adapter in this process may answer with anything."""
    got: list[Any] = []
    odd = Response({"value": {1, 2}})
    async with bench() as b:
        work = Work(odd)
        async with anyio.create_task_group() as callers:
            for _ in range(2):
                callers.start_soon(catch, got, lambda: b.ask(work))
            await until(lambda: b.store.status().joined == 1)
            work.gate.set()
        assert [answer["value"] for answer in got] == [{1, 2}] * 2
        assert b.store.status().entries == 0


async def test_another_configuration_holds_at_once() -> None:
    """What it has no room or no time for goes; what runs is left alone."""
    async with bench(ttl=100) as b:
        for key in "abcd":
            await b.ask(Ready(), key=key)
        size = b.store.status().bytes // 4
        b.store.apply(IdempotencyConfig(ttl=100, entries=3))
        assert b.store.status().entries == 3
        b.store.apply(IdempotencyConfig(ttl=100, max_bytes=max(1_024, 2 * size)))
        assert b.store.status().bytes <= max(1_024, 2 * size)
        assert (await b.ask(Ready(), key="d")).replayed is Replayed.STORED
        b.store.apply(IdempotencyConfig(ttl=5))
        b.clock.ahead = 6
        assert b.store.status().entries == 0


async def test_repr_shows_no_key() -> None:
    """Keys are the callers' own."""
    async with bench() as b:
        await b.ask(Ready(), key="secret")
        assert repr(b.store) == "IdempotencyStore(0 running, 1 kept)"
