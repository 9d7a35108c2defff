"""Whatever happens to a router, each accepted request is settled exactly once."""

import random
from collections import Counter
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import (
    CHAT,
    Events,
    Fail,
    Hang,
    Instant,
    Ok,
    Scripted,
    ScriptedProvider,
    Stubborn,
    make_router,
    role_chunk,
    until,
)

from engine import (
    BrokenError,
    CallerError,
    ConnectError,
    ContextLengthError,
    ExhaustedError,
    GatewayError,
    MisconfiguredError,
    Outcome,
    OverloadedError,
    Priority,
    RejectedError,
    Router,
    RouterStatus,
    SilentError,
    StreamTruncatedError,
    TransientError,
)

ERRORS = [
    ConnectError, TransientError, SilentError, BrokenError, CallerError, ContextLengthError,
    MisconfiguredError, ExhaustedError, ValueError, SystemExit,
]  # fmt: skip


class Crash(BaseException):
    """Takes the actor down."""


def random_step(rng: random.Random) -> Scripted:  # noqa: PLR0911 - one for each kind
    """One thing that an upstream may do."""
    roll = rng.random()
    pause = rng.choice([0, 0, 0.01, 0.5, 3])
    if roll < 0.35:
        return Ok(after=pause)
    if roll < 0.4:
        return Instant()
    if roll < 0.6:
        return Fail(rng.choice(ERRORS), after=pause)
    if roll < 0.68:
        return Fail(OverloadedError("busy", retry_after=rng.choice([None, 0.2, 5])), after=pause)
    if roll < 0.74:
        return Hang(clean_up=rng.choice([0, 0, 0.04, 3]))
    if roll < 0.77:
        return Stubborn(pause, Ok("late") if rng.random() < 0.5 else Fail(ConnectError))
    if roll < 0.8:
        return Fail(Crash, after=pause)
    # Whole answers of these are bugs of the adapter, streams are not.
    cut = rng.choice([(), (ConnectError("cut"),), (KeyError("bug"),), (Hang(),)])
    return Events(role_chunk(), pause, "one", pause, "two", *cut)


class Scenario:
    """A router, providers without manners, callers without patience, and a referee."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.heard: Counter[Outcome] = Counter()
        self.asked = 0
        self.late: list[float] = []
        self.told_attempts = 0
        providers = [
            ScriptedProvider(
                name,
                then=lambda: random_step(rng),
                weight=rng.choice([1, 2, 5]),
                max_retries=rng.randint(0, 3),
                timeout=4,
                limits={"concurrency": rng.randint(1, 4), "queue": rng.randint(0, 5)}
                | {"adaptive": rng.choice([None, {"initial": 2, "min": 1}])},
                ejection={"base": 0.3, "max": 2, "slow_start": rng.choice([0, 2])}
                | {"consecutive_failures": rng.choice([0, 1, 5])},
                timeouts={"headers": 2, "first_event": 2, "idle": 1, "total": 10},
            )
            for name in "abc"[: rng.randint(1, 3)]
        ]
        self.providers = providers
        repeat = rng.choice(["never", "non_streaming", "always"])
        self.most_attempts = rng.randint(1, 5)
        self.router = make_router(
            *providers,
            seed=seed,
            balancer=rng.choice(["weighted_random", "smooth_weighted", "least_loaded"]),
            retries={"max_attempts": self.most_attempts, "repeat_maybe_accepted": repeat},
            retry_budget=rng.choice([{}, {"capacity": 2, "min_concurrency": 1, "max_share": 0}]),
            max_ejected=rng.choice([0, 0.5, 1]),
            history=rng.choice([0, 3, 1_000]),
            models=self.models(),
        )

    def models(self) -> list[dict[str, Any]]:
        """No models, or two with tiers, hedging and fallbacks."""
        rng = self.rng
        if rng.random() < 0.2:
            return []
        targets = [
            {"provider": each.name, "tier": rng.choice([0, 0, 1])} for each in self.providers
        ]
        hedging = rng.choice([None, {"delay": rng.choice([0.02, 0.3]), "max_share": 1}])
        causes = {cause: ["n"] for cause in ("error", "context_length") if rng.random() < 0.5}
        model = {"name": "m", "targets": targets, "hedging": hedging, "fallbacks": causes}
        model["upstream_streaming"] = rng.choice(["never", "auto"])
        return [model, {"name": "n", "targets": [{"provider": self.providers[0].name}]}]

    def check(self) -> RouterStatus:
        """The invariants that hold at every step."""
        status = self.router.status()
        ledger = status.ledger
        assert ledger.conservation_error == 0
        assert ledger.accepted == ledger.in_flight + sum(ledger.outcomes.values())
        for actor, provider in zip(status.actors, self.providers, strict=True):
            limits = provider.config.limits
            mailbox = actor.mailbox
            assert 0 <= actor.in_flight <= actor.workers <= limits.concurrency
            assert 0 <= mailbox.depth <= limits.queue
            assert mailbox.offered == mailbox.taken + mailbox.withdrawn + mailbox.depth
            assert provider.running <= limits.concurrency
        return status

    async def referee(self) -> None:
        """Look at the invariants again and again."""
        while True:
            self.check()
            await anyio.sleep(0.007)

    async def caller(self) -> None:
        """Ask one thing, perhaps leave before the answer, and note what is heard."""
        rng = self.rng
        timeout = rng.choice([None, 0.3, 2, 6])
        limit = 10 if timeout is None else timeout
        patience = rng.choice([1_000, 1_000, 0, 0.02, 1])
        priority = rng.choice(list(Priority))
        stays = rng.choice([1_000, 1_000, 1, 2])
        streamed = rng.random() < 0.5
        start = anyio.current_time()
        with anyio.CancelScope(deadline=start + patience) as scope:
            try:
                if streamed:
                    await self.read(timeout, stays, priority)
                else:
                    response = await self.router.complete(CHAT, timeout=timeout, priority=priority)
                    self.told_attempts = max(self.told_attempts, response.attempts)
                    self.heard[Outcome.COMPLETED] += 1
            except RejectedError:
                self.heard[Outcome.REJECTED] += 1
            except StreamTruncatedError:
                self.heard[Outcome.TRUNCATED] += 1
            except GatewayError as error:
                self.told_attempts = max(self.told_attempts, error.attempts)
                self.heard[Outcome.FAILED] += 1
            took = anyio.current_time() - start
            if took > limit + 0.1:
                self.late.append(took)
        if scope.cancelled_caught:
            self.heard[Outcome.CANCELLED] += 1

    async def read(self, timeout: float | None, stays: int, priority: Priority) -> None:
        """Read a stream, perhaps not to its end."""
        async with self.router.stream(CHAT, timeout=timeout, priority=priority) as stream:
            self.told_attempts = max(self.told_attempts, stream.attempts)
            count = 0
            async for _ in stream:
                count += 1
                if count >= stays:
                    break
            else:
                self.heard[Outcome.COMPLETED] += 1
                return
        self.heard[Outcome.CANCELLED] += 1

    async def run(self) -> None:
        """Play the scenario; the router may close in the middle of it."""
        closes_at = self.rng.choice([0.5, 3, 60])
        async with anyio.create_task_group() as callers:
            async with self.router:
                async with anyio.create_task_group() as group:
                    group.start_soon(self.referee)
                    with anyio.move_on_after(closes_at):
                        for _ in range(40):
                            callers.start_soon(self.caller)
                            await anyio.sleep(self.rng.choice([0, 0, 0.05, 0.5]))
                        await anyio.sleep(30)
                    group.cancel_scope.cancel()
        self.end()

    def end(self) -> None:
        """What holds after the router has closed."""
        status = self.check()
        assert status.ledger.in_flight == 0
        assert [actor.mailbox.depth for actor in status.actors] == [0] * len(self.providers)
        assert [actor.in_flight for actor in status.actors] == [0] * len(self.providers)
        assert self.late == []
        assert self.told_attempts <= self.most_attempts
        assert status.ledger.settled_twice == 0
        assert status.ledger.attempts == sum(len(provider.calls) for provider in self.providers)
        assert 0 <= status.ledger.wasted <= status.ledger.attempts
        assert self.router._running is not None
        assert self.router._running._permits.shared.repeats == 0
        for actor in self.router._running.reloader.current.actors.values():
            assert actor.budget.repeats == 0
        for provider in self.providers:
            assert provider.running == 0
            assert all(call.closed for call in provider.calls if call.streamed)


@given(st.integers(0, 10**9))
@settings(max_examples=25)
def test_every_request_is_settled_exactly_once(seed: int) -> None:
    """Random answers, faults, crashes, cancellations and closing keep every promise."""
    scenario = Scenario(seed)

    async def main() -> None:
        with anyio.fail_after(2_000):
            await scenario.run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    counted = scenario.router.status().ledger.outcomes
    # A caller that comes after closing is refused without having been accepted.
    heard = scenario.heard
    assert sum(heard.values()) >= sum(counted.values())
    assert heard[Outcome.TRUNCATED] <= counted[Outcome.TRUNCATED]
    assert heard[Outcome.COMPLETED] <= counted[Outcome.COMPLETED]


@pytest.mark.parametrize("seed", range(3))
async def test_every_request_is_settled_on_every_event_loop(seed: int) -> None:
    """The same without virtual time: many callers, some of whom leave, on a real clock."""
    rng = random.Random(seed)
    steps: list[Any] = [
        Ok(), Instant(), Ok(after=0.002), ConnectError, ValueError, Events(role_chunk(), "one"),
        Events("one", ConnectError("cut")),
    ]  # fmt: skip
    providers = [
        ScriptedProvider(name, then=lambda: rng.choice(steps), limits={"concurrency": 4})
        for name in "ab"
    ]
    async with make_router(*providers, seed=seed) as router:
        async with anyio.create_task_group() as group:
            for _ in range(300):
                group.start_soon(one_caller, router, rng.random() < 0.5, rng.choice([9, 9, 0.001]))
                assert router.status().ledger.conservation_error == 0
                if rng.random() < 0.2:
                    await anyio.sleep(0.001)
        await until(lambda: all(actor.in_flight == 0 for actor in router.status().actors))
    status = router.status()
    assert status.ledger.accepted == sum(status.ledger.outcomes.values()) == 300
    assert [provider.running for provider in providers] == [0, 0]


async def one_caller(router: Router, streamed: bool, patience: float) -> None:
    """Ask once, for some time, and accept whatever comes."""
    with anyio.move_on_after(patience):
        try:
            if streamed:
                async with router.stream(CHAT) as stream:
                    async for _ in stream:
                        pass
            else:
                await router.complete(CHAT)
        except GatewayError:
            return
