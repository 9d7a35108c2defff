"""`ScriptedProvider`: the adapter through which the engine speaks to a simulated upstream."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import anyio

from adapters.simulation import faults
from adapters.simulation.scenario import FaultConfig
from adapters.simulation.upstream import Call, Upstream
from engine.attempt import Attempt
from engine.config import ProviderConfig
from engine.operations import Chunk, Operation, Response
from engine.provider import BaseProvider

_TEXT: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
_LAST: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
_TEXT_DATA = json.dumps(_TEXT).encode()
_LAST_DATA = json.dumps(_LAST).encode()
_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
_BODY: dict[str, Any] = {"id": "simulated", "object": "chat.completion", "choices": [_CHOICE]}


class SimulatedResponse(Response):
    """A whole answer that knows the call it came from."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        super().__init__(_BODY)
        self.call = call


class SimulatedChunk(Chunk):
    """An event that knows the call it came from, and its place in the answer.

    Attributes:
        call: The call.
        index: Its place, from 0.
        last: Whether the answer is complete with it.
    """

    __slots__ = ("call", "index", "last")

    def __init__(self, call: Call, index: int, *, last: bool) -> None:
        super().__init__(_LAST_DATA if last else _TEXT_DATA, body=_LAST if last else _TEXT)
        self.call = call
        self.index = index
        self.last = last


class ScriptedProvider(BaseProvider):
    """Answers, fails and hangs as its upstream does, on virtual time.

    Args:
        config: The provider's configuration; its type, address and key do not matter.
        upstream: What it speaks to.
    """

    operations: ClassVar[frozenset[Operation]] = frozenset(Operation)

    def __init__(self, config: ProviderConfig, upstream: Upstream) -> None:
        super().__init__(config)
        self.upstream = upstream

    async def send(self, attempt: Attempt) -> Response:
        """See `BaseProvider`."""
        upstream = self.upstream
        call = upstream.begin(attempt)
        try:
            await upstream.enter(call, attempt, streamed=False)
            call.complete = True
        except BaseException as error:
            upstream.failed(call, error)
            raise
        finally:
            upstream.end(call)
        return SimulatedResponse(call)

    def stream(self, attempt: Attempt) -> ScriptedStream:
        """See `BaseProvider`."""
        return ScriptedStream(self.upstream, attempt)

    async def check_health(self, path: str) -> None:  # noqa: ARG002 - all paths are one here
        """Ask whether it is well: it is, unless requests would not even be taken in.

        Raises:
            ProviderError: If the upstream has a fault by which it cannot be reached.
        """
        fault = self.upstream.fault()
        if fault is None:
            return
        if fault.kind in ("hang", "hang_connect"):
            await anyio.sleep_forever()
        if fault.kind in ("refuse", "flap", "reset"):
            raise faults.refused(self.upstream.name)
        if fault.kind == "status":
            raise faults.of_status(fault.status, self.upstream.name)

    async def list_models(self) -> list[str]:
        """There is nothing to list."""
        return []


class ScriptedStream:
    """A streamed answer; nothing happens before the first read."""

    __slots__ = ("_attempt", "_call", "_gap", "_index", "_late", "_total", "_upstream")

    def __init__(self, upstream: Upstream, attempt: Attempt) -> None:
        self._upstream = upstream
        self._attempt = attempt
        self._call: Call | None = None
        self._index = 0
        self._total = upstream.events
        self._gap = 0.0
        self._late: FaultConfig | None = None

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Chunk:
        """See `ChunkSource`."""
        upstream, index = self._upstream, self._index
        call = self._call
        if call is None:
            call = self._call = upstream.begin(self._attempt)
            self._late = upstream.late_fault()
            try:
                rest = await upstream.enter(call, self._attempt, streamed=True)
            except BaseException as error:
                upstream.failed(call, error)
                raise
            self._gap = rest / max(1, self._total - 1)
        elif index >= self._total:
            call.complete = True
            upstream.end(call)
            raise StopAsyncIteration
        else:
            if self._late is not None and index >= self._late.events:
                await self._fail(call, self._late)
            await upstream.pause(call, self._gap)
        self._index = index + 1
        return SimulatedChunk(call, index, last=index == self._total - 1)

    async def _fail(self, call: Call, fault: FaultConfig) -> None:
        if fault.kind == "stall_stream":
            await self._upstream.hang(call)
        raise faults.cut(self._upstream.name)

    async def aclose(self) -> None:
        """See `ChunkSource`."""
        if self._call is not None:
            self._upstream.end(self._call)
