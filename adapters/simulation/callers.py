"""`Callers`: ask the router as real callers do, and note what they hear."""

from __future__ import annotations

from collections.abc import AsyncIterable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import anyio

from adapters.simulation.scripted_provider import SimulatedChunk, SimulatedResponse
from engine.errors import (
    GatewayError,
    InvalidRequestError,
    RejectedError,
    RouterClosedError,
    StreamTruncatedError,
)
from engine.ledger import Outcome

if TYPE_CHECKING:
    # Tasks of the virtual loop: one a caller, and a task group would double its price.
    from asyncio import Future

    from adapters.simulation.invariants import Referee
    from adapters.simulation.observer import Observer
    from adapters.simulation.requests import Asked
    from adapters.simulation.virtual_loop import VirtualLoop
    from engine.operations import Chunk, Response
    from engine.router import Router


class Callers:
    """Starts a task for each request at its instant; never waits for any of them.

    Args:
        router: Who is asked.
        requests: The requests in the order of their instants.
        loop: Where time comes from.
        referee: Checks the promises.
        observer: Counts.
    """

    def __init__(
        self,
        router: Router,
        requests: Iterator[Asked],
        *,
        loop: VirtualLoop,
        referee: Referee,
        observer: Observer,
    ) -> None:
        self._router = router
        self._requests = requests
        self._loop = loop
        self._referee = referee
        self._observer = observer
        self._origin = loop.time()
        self._asking = 0
        self._last_id = 0
        self._next: Asked | None = None
        self._all_heard: Future[None] = loop.create_future()
        self.door_closed = False

    def begin(self) -> None:
        """Begin to ask."""
        self._schedule()

    async def finish(self) -> None:
        """Wait until everybody has asked and has the ending."""
        await self._all_heard

    def _schedule(self) -> None:
        asked = self._next = next(self._requests, None)
        if asked is None:
            self._check_finished()
        else:
            self._loop.call_at(self._origin + asked.at, self._arrive)

    def _arrive(self) -> None:
        asked = self._next
        assert asked is not None
        self._last_id += 1
        asked.number = self._last_id
        self._asking += 1
        self._loop.create_task(self._ask(asked), name="caller")
        self._schedule()

    def _check_finished(self) -> None:
        if self._next is None and not self._asking and not self._all_heard.done():
            self._all_heard.set_result(None)

    # ── one caller ───────────────────────────────────────────────────────────────

    async def _ask(self, asked: Asked) -> None:
        request_id = f"sim-{asked.number}"
        options: dict[str, Any] = {"request_id": request_id}
        if asked.timeout is not None:
            options["timeout"] = asked.timeout
        if asked.priority is not None:
            options["priority"] = asked.priority
        self._referee.taken_in(asked, request_id)
        work = (self._stream if asked.request.streamed else self._complete)(asked, options)
        error: GatewayError | None = None
        try:
            if asked.leaves_after is None:
                outcome = await work
            else:
                outcome = await self._leave_early(work, asked.leaves_after)
        except RouterClosedError as refusal:
            error, outcome = refusal, Outcome.REJECTED
            if self.door_closed and not asked.attempts and asked.begun == self._loop.time():
                self._referee.not_taken_in(request_id)
                self._leave(asked, None, refusal)
                return
            if asked.attempts:
                outcome = Outcome.FAILED
        except GatewayError as failure:
            error, outcome = failure, _outcome_of(failure)
        except Exception as bug:  # noqa: BLE001 - the border: whatever came is a broken promise
            outcome = Outcome.FAILED
            self._referee.report("I2", f"{request_id} met {type(bug).__name__}: {bug}")
        self._referee.ended(asked, request_id, outcome)
        self._leave(asked, outcome, error)

    def _leave(self, asked: Asked, outcome: Outcome | None, error: GatewayError | None) -> None:
        self._observer.ended(asked, outcome, error)
        self._asking -= 1
        if not self._asking:
            self._check_finished()

    async def _leave_early(self, work: Coroutine[Any, Any, Outcome], after: float) -> Outcome:
        with anyio.move_on_after(after):
            return await work
        return Outcome.CANCELLED

    async def _complete(self, asked: Asked, options: dict[str, Any]) -> Outcome:
        response = await self._router.complete(asked.request, **options)
        self._check_whole(response, options["request_id"])
        self._referee.told_attempts(asked, options["request_id"], response.attempts)
        return Outcome.COMPLETED

    def _check_whole(self, response: Response, request_id: str) -> None:
        if isinstance(response, SimulatedResponse) and not response.call.complete:
            self._referee.report("I9", f"{request_id} was given an answer that is not complete")

    async def _stream(self, asked: Asked, options: dict[str, Any]) -> Outcome:
        async with self._router.stream(asked.request, **options) as stream:
            asked.committed = True
            self._observer.first_event(self._loop.time() - asked.begun)
            self._referee.told_attempts(asked, options["request_id"], stream.attempts)
            await self._read(stream, options["request_id"])
        return Outcome.COMPLETED

    async def _read(self, stream: AsyncIterable[Chunk], request_id: str) -> None:
        """Read to the end; each chunk must be the next one of the same call."""
        last: SimulatedChunk | None = None
        index = 0
        async for chunk in stream:
            assert isinstance(chunk, SimulatedChunk)
            if chunk.index != index or (last is not None and chunk.call is not last.call):
                self._referee.report("I2", f"{request_id} was given events of two calls")
            last = chunk
            index += 1
        if last is None or not last.last:
            self._referee.report("I9", f"{request_id} was shown a cut stream as complete")


def _outcome_of(error: GatewayError) -> Outcome:
    if isinstance(error, (RejectedError, InvalidRequestError)) and not error.attempts:
        return Outcome.REJECTED
    if isinstance(error, StreamTruncatedError):
        return Outcome.TRUNCATED
    return Outcome.FAILED
