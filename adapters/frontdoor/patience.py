"""Waiting with a bound that costs nothing when there is nothing to wait for.

`anyio.fail_after` costs about 8 microseconds on asyncio. The front door would pay it at least four
times per request and once per chunk of a stream, nearly always for an awaitable that never waits:
bytes that fit into the socket's buffer, a message that lies in the queue already. So the awaitable
is started by hand, and only when it really has to wait is a bound put around the `Started` rest::

    steps = awaitable.__await__()
    try:
        waiting = steps.send(None)
    except StopIteration as stop:
        return stop.value               # there was nothing to wait for
    ... set a deadline ...
    return await Started(steps, waiting)

One rule comes with it. A cancel scope must not be *opened* between the first step and the rest if
the awaitable may hold a scope of its own while it waits: scopes must close in the reverse order in
which they were opened. Setting the deadline of a scope that is open already is always right.
"""

from collections.abc import Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Started(Generic[T]):
    """The rest of an awaitable whose first step has been taken. Await it once."""

    __slots__ = ("_steps", "_waiting")

    def __init__(self, steps: Generator[Any, Any, T], waiting: object) -> None:
        """Take over.

        Args:
            steps: what the awaitable's ``__await__`` gave.
            waiting: what its first step asked the event loop for.
        """
        self._steps = steps
        self._waiting = waiting

    def __await__(self) -> Generator[Any, Any, T]:
        """Hand to the event loop what the first step asked for, then go on (PEP 380 by hand)."""
        steps = self._steps
        waiting = self._waiting
        try:
            while True:
                try:
                    answer = yield waiting
                except BaseException as error:  # noqa: BLE001 - handed on, cancellation included
                    waiting = steps.throw(error)
                else:
                    waiting = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
