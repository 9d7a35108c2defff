"""One resource for each running event loop, closed at the latest when that loop ends."""

import asyncio  # sessions belong to a loop, and this is where loops are told apart
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel
import sniffio


class LoopResource(Protocol):
    """What lives on one event loop."""

    async def aclose(self) -> None:
        """Close everything it holds."""

    def abandon(self) -> None:
        """Let go of everything without the loop, which has ended."""


R = TypeVar("R", bound=LoopResource)


def running_on_trio() -> bool:
    """Say whether trio executes the caller."""
    return sniffio.thread_local.name == "trio"


def running_loop() -> object | None:
    """Return the asyncio loop or the trio run that executes the caller, or `None`."""
    # Trio first: in its guest mode an asyncio loop runs as well.
    if running_on_trio():
        return anyio.lowlevel.current_token().native_token
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def required_loop() -> object:
    """Return what `running_loop()` returns.

    Raises:
        RuntimeError: Neither asyncio nor trio executes the caller.
    """
    loop = running_loop()
    if loop is None:
        message = "a transport works only under a running event loop of asyncio or trio"
        raise RuntimeError(message)
    return loop


class PerLoop(Generic[R]):
    """Opens a resource at its first use on a loop and closes it there.

    A session must be closed on its own loop, and a program may end that loop without a word to
    us. So each resource hangs on an asynchronous generator that was started on the loop: runners
    (`asyncio.run`, `anyio.run`, `trio.run`) close such generators before they close the loop.
    Loops that were closed without that are found, and forgotten, when the next one comes.
    """

    def __init__(self, open_resource: Callable[[], R]) -> None:
        """Keep the way to open a resource; it is called on the loop that needs one."""
        self._open_resource = open_resource
        self._resources: dict[object, R] = {}
        self._keepers: dict[object, AsyncGenerator[None]] = {}
        self._changing = threading.Lock()

    def find(self, loop: object) -> R | None:
        """Return the resource of `loop` if one is open."""
        return self._resources.get(loop)

    async def open(self, loop: object) -> R:
        """Return the resource of the running `loop`, opening it if need be."""
        self._forget_ended_loops()
        resource = self._resources.get(loop)
        if resource is None:
            resource = self._open_resource()
            keeper = self._keep(loop, resource)
            with self._changing:
                self._resources[loop] = resource
                self._keepers[loop] = keeper
            await anext(keeper)  # runs to the `yield` without suspending
        return resource

    async def aclose(self, loop: object) -> None:
        """Close the resource of the running `loop`, if any; the next use opens a new one."""
        with self._changing:
            self._resources.pop(loop, None)
            keeper = self._keepers.pop(loop, None)
        if keeper is not None:
            await keeper.aclose()

    async def _keep(self, loop: object, resource: R) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            with self._changing:
                if self._resources.get(loop) is resource:
                    del self._resources[loop]
                    del self._keepers[loop]
            with anyio.CancelScope(shield=True):
                await resource.aclose()

    def _forget_ended_loops(self) -> None:
        with self._changing:
            ended = [
                loop
                for loop in self._resources
                if isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed()
            ]
            resources = [self._resources.pop(loop) for loop in ended]
            for loop in ended:
                del self._keepers[loop]
        for resource in resources:
            resource.abandon()
