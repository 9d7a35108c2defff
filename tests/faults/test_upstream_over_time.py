"""Providers that misbehave over minutes, in virtual time: who is asked, and who is left alone."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
from fault_table import Row, shows
from scripted import CHAT, Fail, Ok, ScriptedProvider, make_router

from engine import GatewayError, OverloadedError, Router, TransientError
from engine.status import ActorStatus

VirtualTime = Callable[..., None]


@dataclass
class Traffic:
    """Requests at even intervals, whatever becomes of them.

    Attributes:
        router: Who is asked.
        per_second: Requests in a second.
        answers: Whether each request was answered, and when it began.
        errors: What the others came to.
    """

    router: Router
    per_second: float
    answers: list[tuple[float, bool]] = field(default_factory=list)
    errors: list[GatewayError] = field(default_factory=list)

    async def run(self, seconds: float, look: Callable[[], None] = lambda: None) -> None:
        """Ask for some seconds, looking at the router before each request; wait for all."""
        async with anyio.create_task_group() as group:
            for _ in range(int(seconds * self.per_second)):
                look()
                group.start_soon(self._ask)
                await anyio.sleep(1 / self.per_second)

    async def _ask(self) -> None:
        began = anyio.current_time()
        try:
            await self.router.complete(CHAT)
        except GatewayError as error:
            self.errors.append(error)
            self.answers.append((began, False))
        else:
            self.answers.append((began, True))

    def failed_since(self, instant: float) -> int:
        """Requests that began later and were not answered."""
        return sum(not answered for began, answered in self.answers if began >= instant)


def actor(router: Router, name: str) -> ActorStatus:
    """One provider's status."""
    return next(actor for actor in router.status().actors if actor.name == name)


@shows(Row(
    "U46", "ten times slower, without an error", "the answer, later", "nothing", "the answer",
    "successes", "Time alone ejects nobody, so a slow day does not flap. The balancer "
    "`least_loaded` sends requests where the least work waits; with it a provider that becomes "
    "ten times slower keeps about a tenth of its share. `limits.adaptive` bounds what waits there.",
))  # fmt: skip
def test_u46_grey_failure_loses_its_share(virtual_time: VirtualTime) -> None:
    """U46: who becomes ten times slower keeps a small share, and is not ejected."""

    async def main() -> None:
        slow = ScriptedProvider("slow", then=Ok(after=2.0))
        quick = ScriptedProvider("quick", then=Ok(after=0.2))
        async with make_router(slow, quick, balancer="least_loaded") as router:
            traffic = Traffic(router, 30)
            await traffic.run(30)
            assert not traffic.failed_since(0)
            assert len(slow.calls) < 0.2 * len(quick.calls)
            assert actor(router, "slow").health.ejections == 0

    virtual_time(main)


@shows(Row(
    "U47", "every other attempt fails", "the answer", "elsewhere", "nothing",
    "ejected by its failure rate", "Failures in a row would never eject it: half of at least 10 "
    "attempts within 30 s do. At most half of a model's providers are ejected by rate.",
))  # fmt: skip
def test_u47_half_of_the_answers_fail(virtual_time: VirtualTime) -> None:
    """U47: a provider that fails every other time is ejected by its rate."""

    async def main() -> None:
        turns = iter(range(1_000_000))
        bad = ScriptedProvider(
            "bad", then=lambda: Ok(after=0.1) if next(turns) % 2 else TransientError
        )
        well = ScriptedProvider("well", then=Ok(after=0.1))
        async with make_router(bad, well) as router:
            reasons: set[str | None] = set()
            traffic = Traffic(router, 20)
            await traffic.run(10, lambda: reasons.add(actor(router, "bad").health.reason))
            assert any(reason and "attempts failed within" in reason for reason in reasons)
            assert not traffic.failed_since(0)

    virtual_time(main)


@shows(Row(
    "U48", "up for ten seconds, down for ten", "the answer", "elsewhere", "nothing",
    "ejected, each time for longer", "5 s, 10 s, up to 30 s, each drawn out by up to a fifth so "
    "that providers struck together do not return together; a healthy 30 s takes one step back.",
))  # fmt: skip
def test_u48_flapping_is_left_alone_for_longer(virtual_time: VirtualTime) -> None:
    """U48: the ejections of a provider that flaps grow, each by its own jitter."""

    async def main() -> None:
        start = anyio.current_time()

        def flap() -> Any:
            down = (anyio.current_time() - start) % 20 >= 10
            return TransientError if down else Ok(after=0.05)

        pair = [ScriptedProvider(name, then=flap) for name in ("one", "two")]
        well = ScriptedProvider("well", then=Ok(after=0.05))
        longest: dict[tuple[str, int], float] = {}
        async with make_router(*pair, well) as router:

            def look() -> None:
                for name in ("one", "two"):
                    health = actor(router, name).health
                    key = name, health.ejections
                    if health.state == "ejected":
                        longest[key] = max(longest.get(key, 0.0), health.seconds_left or 0.0)

            traffic = Traffic(router, 10)
            await traffic.run(120, look)
            assert not traffic.failed_since(0)
        for name in ("one", "two"):
            lasted = [seconds for (who, _), seconds in sorted(longest.items()) if who == name]
            assert len(lasted) >= 3
            assert lasted[0] <= 6
            assert 10 < max(lasted) <= 30
        assert longest["one", 1] != longest["two", 1]

    virtual_time(main)


@shows(Row(
    "U49", "all providers down", "502 `provider_error`, at once",
    "elsewhere, as far as the retry budget goes: 1.1 attempts a request at most", "nothing",
    "all are ejected; requests are their probes", "The last resort: with all ejected, a request "
    "is tried all the same at one of them, at most 10 at a time at each.",
))  # fmt: skip
def test_u49_total_outage_is_not_amplified(virtual_time: VirtualTime) -> None:
    """U49: with all providers down, 100 requests a second make 1.1 attempts each at most."""

    async def main() -> None:
        down = [ScriptedProvider(name, then=Fail(TransientError, 0.01)) for name in "abc"]
        async with make_router(*down) as router:
            traffic = Traffic(router, 100)
            await traffic.run(20)
        attempts = sum(len(provider.calls) for provider in down)
        assert len(traffic.errors) == 2_000
        assert attempts <= 1.1 * 2_000

    virtual_time(main)


@shows(Row(
    "U49", "all providers overloaded", "503 with a `Retry-After` that is the soonest hint's",
    "nothing before the hint's instant", "nothing", "closed until the hint's instant",
))  # fmt: skip
def test_u49_overload_of_all_is_waited_out(virtual_time: VirtualTime) -> None:
    """U49: while all have asked for a pause nobody is called, and callers learn how long."""

    async def main() -> None:
        error = OverloadedError("busy", retry_after=20.0)
        busy = [ScriptedProvider(name, then=error, max_retries=0) for name in "abc"]
        async with make_router(*busy) as router:
            await Traffic(router, 20).run(1)
            called = sum(len(provider.calls) for provider in busy)
            later = Traffic(router, 20)
            await later.run(15)
        assert sum(len(provider.calls) for provider in busy) == called
        assert called <= 6
        assert {error.status for error in later.errors} == {503}
        hints = [error.retry_after or 0.0 for error in later.errors]
        assert 17 < hints[0] <= 20
        assert 3 < hints[-1] < 6

    virtual_time(main)


@shows(Row(
    "U50", "all recover at the same instant", "the answer, 30 s later at the latest", "elsewhere",
    "nothing", "slow start", "Half open, one live request is the probe; then the share grows from "
    "a tenth to the whole in 30 s. Ejections end at different instants because of their jitter.",
))  # fmt: skip
def test_u50_all_recover_without_a_second_collapse(virtual_time: VirtualTime) -> None:
    """U50: healed providers serve again within 30 s, by slow start, and stay."""

    async def main() -> None:
        healed_at = anyio.current_time() + 40
        rng = random.Random(5)
        providers: list[ScriptedProvider] = []

        def recover(index: int) -> Any:
            if anyio.current_time() < healed_at:
                return TransientError
            # Who gets everything at once falls over again.
            crowded = providers[index].running > 5
            return TransientError if crowded else Ok(after=rng.uniform(0.1, 0.3))

        providers += [
            ScriptedProvider(name, then=functools.partial(recover, i), max_retries=0)
            for i, name in enumerate("abc")
        ]
        async with make_router(*providers) as router:
            traffic = Traffic(router, 20)
            await traffic.run(40)
            assert all(actor(router, name).health.ejections for name in "abc")
            await traffic.run(30)
            back = {name: actor(router, name).health for name in "abc"}
            assert {health.state for health in back.values()} <= {"slow_start", "healthy"}
            await traffic.run(35)
            assert traffic.failed_since(healed_at + 30) == 0
            for name in "abc":
                now = actor(router, name).health
                assert (now.state, now.ejections) == ("healthy", back[name].ejections)

    virtual_time(main)


@shows(Row(
    "U51", "fast but wrong", "the answer", "elsewhere", "nothing",
    "ejected after five failures in a row", "A provider that fails at once has the least work in "
    "hand, so `least_loaded` would love it: its failures take it out before that matters.",
))  # fmt: skip
def test_u51_fast_but_wrong_is_not_preferred(virtual_time: VirtualTime) -> None:
    """U51: a provider that fails within a millisecond gets next to nothing."""

    async def main() -> None:
        wrong = ScriptedProvider("wrong", then=Fail(TransientError, 0.001))
        well = ScriptedProvider("well", then=Ok(after=0.5))
        async with make_router(wrong, well, balancer="least_loaded") as router:
            traffic = Traffic(router, 20)
            await traffic.run(60)
        assert not traffic.failed_since(0)
        assert len(wrong.calls) <= 20

    virtual_time(main)
