"""Repeats at one provider: they count against its rate, and only the deadline cuts a pause."""

from collections.abc import Callable
from typing import Any

import anyio
from scripted import CHAT, Fail, Hang, Ok, ScriptedProvider, assert_settled, make_router

from engine import ConnectError, OverloadedError, Priority

Virtual = Callable[..., None]


def test_repeat_waits_for_the_rate_of_its_provider(virtual_time: Virtual) -> None:
    """A repeat is an attempt like any other: it starts only when the rate allows one."""

    async def main() -> None:
        # The bucket holds 60 tokens and gains 10 a second; each attempt reserves over 100.
        provider = ScriptedProvider("a", ConnectError("gone"), limits={"tokens_per_minute": 600})
        request: dict[str, Any] = {**CHAT, "max_tokens": 100}
        async with make_router(provider) as router:
            start = anyio.current_time()
            response = await router.complete(request)
            assert response.attempts == 2
            assert 4 < anyio.current_time() - start < 30
        assert_settled(router, completed=1)

    virtual_time(main)


def test_pause_between_repeats_may_outlast_an_attempt(virtual_time: Virtual) -> None:
    """The limit of an attempt does not run on while the next one waits for its turn."""

    async def main() -> None:
        busy = OverloadedError("busy", retry_after=5)
        provider = ScriptedProvider("a", busy, busy, timeout=1)
        async with make_router(provider) as router:
            start = anyio.current_time()
            response = await router.complete(CHAT)
            assert response.attempts == 3
            assert anyio.current_time() - start >= 10
        assert_settled(router, completed=1)

    virtual_time(main)


def test_pause_is_not_waited_for_where_there_is_no_room_after_it(virtual_time: Virtual) -> None:
    """Of two that asked for a pause, the one whose mailbox has room for the class is awaited."""

    async def main() -> None:
        soon = Fail(OverloadedError("busy", retry_after=5), after=1)
        full = ScriptedProvider(
            "full", soon, then=Hang(), weight=1e9, limits={"concurrency": 1, "queue": 2}
        )
        late = OverloadedError("busy", retry_after=20)
        free = ScriptedProvider("free", late, then=Ok("free"), weight=1e-9)
        models = [
            {"name": "m", "targets": [{"provider": "full"}, {"provider": "free"}]},
            {"name": "only-full", "targets": [{"provider": "full"}]},
        ]
        async with make_router(full, free, models=models) as router:
            async with anyio.create_task_group() as group:

                async def fill() -> None:
                    await anyio.sleep(0.5)
                    for _ in range(2):
                        group.start_soon(router.complete, {**CHAT, "model": "only-full"})

                group.start_soon(fill)
                response = await router.complete(CHAT, priority=Priority.SHEDDABLE)
                assert (response.provider, response.attempts) == ("free", 3)
                group.cancel_scope.cancel()

    virtual_time(main)
