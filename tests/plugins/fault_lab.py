"""Faults of an upstream, each played over a real socket and seen from the caller's side.

A fault is a script for one connection in raw bytes, and what a caller must see of it. Each
is run through the library and over HTTP, whole and streamed: with a provider behind it that
is well, once where a request that may have been executed must not be repeated and once
where it may, and with nobody behind it. So no path can differ from another.
"""

from __future__ import annotations

import contextlib
import math
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import pytest
from fault_calls import (
    CANARY_KEY,
    CANARY_PROMPT,
    CHAT,
    Call,
    Caller,
    Entrance,
    http_call,
    library_call,
)
from fault_table import Row, row_of
from raw_upstream import Door, Script, Upstream, be_well

from adapters.frontdoor.app import create_app
from adapters.frontdoor.listening_socket import open_listening_socket
from adapters.frontdoor.server import serve
from engine import GatewayConfig, ProviderError, Router, RouterStatus

Behind = Literal["never", "always", "alone"]
"""Whether somebody else can serve, and gets what may have been executed already."""

PATIENT = {"connect": 10, "headers": 10, "first_event": 10, "idle": 10, "total": 20}
SOON = 0.3
"""Seconds: for a limit that is to be met. All others are far away, for a busy machine."""

SHORTEST = 1
"""Seconds: a pause that may be over, on a busy machine, before anybody looks."""


@dataclass(frozen=True)
class Seen:
    """What a caller sees of a fault when nothing else may be tried, and what is known then.

    Attributes:
        error_class: The row of the retry table; empty if the answer arrives.
        replay: Whether it may have been executed, and billed.
        status: HTTP status of the answer.
        code: `error.code` of the answer; for a stream that broke, of its last event.
        committed: Whether the caller had parts of the answer already.
        elsewhere: Whether another provider may be asked (where repeating is allowed).
        state: What its health is then.
        closed_for: Seconds for which the provider is closed, about; None where it is not.
        retry_after: Seconds that the caller is told to wait; None without such a word.
        counted: Whether the provider is counted as the one that failed.
        cut: Whether the connection must not be kept.
        text: What of the answer has arrived; None where that depends on chance.
    """

    error_class: str = ""
    replay: str = "not_accepted"
    status: int = 502
    code: str | None = None
    committed: bool = False
    elsewhere: bool = True
    state: str = "healthy"
    closed_for: float | None = None
    retry_after: float | None = None
    counted: bool = True
    cut: bool = True
    text: str | None = None

    @property
    def completed(self) -> bool:
        """Whether it is no failure for the caller at all."""
        return not self.error_class


COMPLETED = Seen(status=200, text="well", cut=False)
COMPLETED_AND_CUT = Seen(status=200, text="well")
TRUNCATED = Seen(
    "after_commit", "accepted", 200, "stream_truncated", committed=True, elsewhere=False
)


@dataclass(frozen=True)
class Fault:
    """One fault of the catalogue.

    Attributes:
        id: Its id: `U17`.
        name: What happens, in a few words.
        script: What the upstream does.
        whole: What becomes of an unstreamed call; None where the fault cannot meet one.
        streamed: What becomes of a stream; None where the fault cannot meet one.
        timeouts: Limits of the provider that differ from the patient ones, seconds.
        timeout: Limit of one attempt, seconds.
        door: Opens the port that the provider is said to have; None for the script's own.
        address: Where the provider is, with a place for the port.
        tls: Makes the context with which the upstream speaks TLS.
        body: Further fields of the caller's request.
        settings: Further settings of the provider.
        total: Deadline of the request, seconds.
        warm: Calls that are made before, and answered well.
        note: What an operator should know beside it.
    """

    id: str
    name: str
    script: Script
    whole: Seen | None
    streamed: Seen | None
    timeouts: dict[str, float] = field(default_factory=dict)
    timeout: float = 10
    door: Door | None = None
    address: str = "http://127.0.0.1:{port}/v1"
    tls: Callable[[], ssl.SSLContext] | None = None
    body: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    total: float = 20
    warm: int = 0
    note: str = ""

    @property
    def slug(self) -> str:
        """The name of its test: `u17_stall_mid_stream`."""
        words = "".join(c if c.isalnum() else " " for c in self.name.lower()).split()
        return "_".join([self.id.lower(), *words])


class Case:
    """One call that meets a fault: of which kind, and who stands behind."""

    def __init__(self, fault: Fault, *, streamed: bool, behind: Behind) -> None:
        seen = fault.streamed if streamed else fault.whole
        assert seen is not None
        self.fault = fault
        self.streamed = streamed
        self.behind = behind
        self.seen = seen
        self.name = f"{'streamed' if streamed else 'whole'}-{behind}"
        self.bad = Upstream(fault.script, tls=fault.tls)
        self.well = Upstream(be_well)
        self.port = 0

    @property
    def goes_on(self) -> bool:
        """Whether the provider behind it is asked."""
        may = self.seen.replay == "not_accepted" or self.behind == "always"
        return self.seen.elsewhere and may and self.behind != "alone"

    @property
    def body(self) -> dict[str, Any]:
        """What the caller asks."""
        return {"model": self.name, "stream": self.streamed, **CHAT, **self.fault.body}

    @property
    def providers(self) -> list[dict[str, Any]]:
        """The provider that has the fault, and one that is well."""
        fault = self.fault
        bad = {
            "name": f"fault-{self.name}",
            "type": "openai_compatible",
            "base_url": fault.address.format(port=self.port),
            "api_key_env": "FAULT_LAB_KEY",
            "timeout": fault.timeout,
            "max_retries": 0,
            "timeouts": PATIENT | fault.timeouts,
            **fault.settings,
        }
        well = {
            "name": f"well-{self.name}",
            "type": "openai_compatible",
            "base_url": f"http://127.0.0.1:{self.well.port}/v1",
        }
        return [bad, well]

    @property
    def model(self) -> dict[str, Any]:
        """The model that the caller asks for: first the fault, then who is well."""
        bad, well = self.providers
        targets = [{"provider": bad["name"]}, {"provider": well["name"], "tier": 1}]
        policy = "always" if self.behind == "always" else "never"
        return {
            "name": self.name,
            "targets": targets[:1] if self.behind == "alone" else targets,
            "retries": {"repeat_maybe_accepted": policy},
            "total": self.fault.total,
        }

    def judge(self, caller: Caller, status: RouterStatus) -> None:
        """Compare what was seen with what must be seen."""
        seen = self.seen
        found = (caller.status, caller.code, caller.truncated)
        if seen.completed:
            assert found == (200, None, False)
            assert caller.text == seen.text
        elif self.goes_on:
            assert found == (200, None, False)
            assert (caller.text, caller.attempts) == ("well", 2)
        else:
            assert found == (seen.status, seen.code, seen.committed)
            assert not self.well.requests
            self._judge_error(caller)
        assert not (seen.cut and self.bad.open), "the connection was kept"
        # One owner of retries: nothing below the router asks again by itself.
        assert self.bad.requests <= 1 + self.fault.warm
        actor = next(a for a in status.actors if a.name == f"fault-{self.name}")
        counted = seen.counted and not seen.completed
        assert actor.failed == ({seen.error_class: 1} if counted else {})
        if not (seen.closed_for == SHORTEST and actor.health.state == "healthy"):
            assert actor.health.state == seen.state
            left = actor.health.seconds_left or 0.0
            assert (seen.closed_for or 0.0) - 15 < left <= (seen.closed_for or 0.0)
        for secret in (CANARY_KEY, CANARY_PROMPT):
            assert secret not in caller.output

    def _judge_error(self, caller: Caller) -> None:
        seen = self.seen
        if seen.text is not None:
            assert caller.text == seen.text
        if seen.retry_after is None:
            assert seen.status in {429, 503} or caller.retry_after is None
        else:
            assert caller.retry_after is not None
            assert abs(caller.retry_after - seen.retry_after) <= 1
        if caller.head and seen.status in {429, 503}:
            wait = int(caller.head["retry-after"])
            assert wait >= 1
            assert seen.retry_after is None or wait >= math.floor(seen.retry_after)
        if caller.head and seen.replay != "not_accepted" and not seen.committed:
            # The client's own retry loop must not do what was not allowed here.
            assert caller.head["x-should-retry"] == "false"
        if isinstance(caller.error, ProviderError):
            found = (caller.error.error_class.value, caller.error.replay.value)
            assert found == (seen.error_class, seen.replay)


class Lab:
    """A gateway over the providers of some cases, which have nothing in common.

    Args:
        cases: Who is asked for what.

    Attributes:
        router: The engine, while it runs.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases
        self.router: Router | None = None

    @property
    def config(self) -> GatewayConfig:
        """The configuration over all cases."""
        return GatewayConfig.model_validate({
            "providers": [provider for case in self.cases for provider in case.providers],
            "models": [case.model for case in self.cases],
            "seed": 1,
        })  # fmt: skip

    async def run(self, entrance: Entrance, use: Callable[[Call], Awaitable[None]]) -> None:
        """Run `use` with a function that makes one call."""
        async with anyio.create_task_group() as group:
            with contextlib.ExitStack() as doors:
                for case in self.cases:
                    for upstream in (case.bad, case.well):
                        await group.start(upstream.serve)
                    door = case.fault.door
                    case.port = doors.enter_context(door()) if door else case.bad.port
                with anyio.fail_after(30):
                    if entrance == "library":
                        async with Router(self.config) as self.router:
                            await use(library_call(self.router))
                    else:
                        await self._over_http(use)
            group.cancel_scope.cancel()
        assert self.router is not None
        ledger = self.router.status().ledger
        assert (ledger.conservation_error, ledger.in_flight) == (0, 0)

    async def _over_http(self, use: Callable[[Call], Awaitable[None]]) -> None:
        app = create_app(self.config)
        listener = open_listening_socket("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
        started, shutdown, hurry = anyio.Event(), anyio.Event(), anyio.Event()

        async def serve_app() -> None:
            await serve(
                app,
                listener=listener,
                settings=app.settings,
                draining=app.draining,
                shutdown=shutdown,
                hurry=hurry,
                on_started=started.set,
            )

        async with anyio.create_task_group() as group:
            group.start_soon(serve_app)
            await started.wait()
            self.router = app.engine
            await use(http_call(url))
            shutdown.set()
            hurry.set()

    async def settle(self) -> RouterStatus:
        """Wait until nothing is under way any more, which must be soon."""
        assert self.router is not None
        with anyio.fail_after(5):
            while True:
                status = self.router.status()
                busy = any(actor.in_flight or actor.mailbox.depth for actor in status.actors)
                if not busy and not status.ledger.in_flight:
                    return status
                await anyio.sleep(0.005)

    async def let_go(self) -> None:
        """Give the connections that must be cut, which is to be at once, a moment to end."""
        with anyio.move_on_after(3):
            while any(case.bad.open for case in self.cases if case.seen.cut):  # noqa: ASYNC110
                await anyio.sleep(0.005)


async def check(fault: Fault, entrance: Entrance) -> None:
    """Play a fault in all its cases side by side, and compare what callers see of it."""
    kinds = [s for s, seen in ((False, fault.whole), (True, fault.streamed)) if seen]
    behind: tuple[Behind, ...] = ("never", "always", "alone")
    cases = [Case(fault, streamed=kind, behind=who) for kind in kinds for who in behind]
    lab = Lab(cases)
    callers: dict[str, Caller] = {}
    wrong: list[Exception] = []

    async def use(call: Call) -> None:
        async def meet(case: Case) -> None:
            for _ in range(fault.warm):
                assert (await call({"model": case.name, **CHAT})).text == "well"
            callers[case.name] = await call(case.body)

        async with anyio.create_task_group() as group:
            for case in cases:
                group.start_soon(meet, case)
        status = await lab.settle()
        await lab.let_go()
        for case in cases:
            try:
                case.judge(callers[case.name], status)
            except AssertionError as error:
                error.add_note(f"{fault.id} {case.name}: {callers[case.name]}")
                wrong.append(error)

    await lab.run(entrance, use)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else ExceptionGroup(fault.id, wrong)


def make_tests(faults: Iterable[Fault]) -> dict[str, Callable[..., Awaitable[None]]]:
    """A test for each fault, named after it: `globals().update(make_tests(FAULTS))`.

    Raises:
        ValueError: If two faults have one name.
    """
    tests: dict[str, Callable[..., Awaitable[None]]] = {}
    for fault in faults:
        name = f"test_{fault.slug}"
        if name in tests:
            msg = f"two faults are named {name}"
            raise ValueError(msg)
        tests[name] = _test(fault)
    return tests


def _test(fault: Fault) -> Callable[..., Awaitable[None]]:
    @pytest.mark.anyio
    async def run(entrance: Entrance) -> None:
        await check(fault, entrance)

    run.__doc__ = f"{fault.id}: {fault.name}."
    rows: list[Row] = [row_of(fault)]
    run.fault_rows = rows  # type: ignore[attr-defined]
    return run
