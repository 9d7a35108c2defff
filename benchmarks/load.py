"""The load generator: a fixed number of requests over a few kept-alive connections.

Run as a process of its own: `python -m benchmarks.load '{"port": ...}'`, with the fields of
`LoadPlan`; it prints a `LoadResult` as JSON. Each connection asks again as soon as it has its
answer (a closed loop), and every answer is checked: status, length, number of events.
"""

from __future__ import annotations

# uvloop is an asyncio event loop, and its protocols are the cheapest way to move bytes.
import asyncio
import json
import sys
import time
from array import array
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

from benchmarks.cpu_time import cpu_seconds
from benchmarks.load_answer import AnswerError, check_answer, read_answer
from benchmarks.spread import percentile
from benchmarks.wire import request_body, request_message

KEPT_REASONS = 5


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to ask, and how often.

    Attributes:
        port: Where, on the loopback interface.
        requests: How many are measured, over all connections.
        connections: How many ask at the same time.
        warm_up: Requests that each connection makes before the measured ones.
        streamed: Whether answers are streams.
        paced: Whether the events of a stream come one by one.
        watched: Processes whose processor time is read, by name.
        limit: Seconds after which it gives up.
    """

    port: int
    requests: int
    connections: int
    warm_up: int = 2
    streamed: bool = False
    paced: bool = False
    watched: dict[str, int] = field(default_factory=dict)
    limit: float = 120.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of it. Times in seconds.

    Attributes:
        requests: Answers that were measured, right ones and wrong ones.
        errors: Wrong answers, lost connections, and requests that had no answer in time.
        reasons: What was wrong, the first few.
        seconds: From the first measured request to the last answer.
        p50: Half of the answers came faster.
        p99: 99 % of the answers came faster.
        cpu: Processor time that each watched process used meanwhile.
        own_cpu: Processor time of the load generator.
    """

    requests: int
    errors: int
    reasons: list[str]
    seconds: float
    p50: float
    p99: float
    cpu: dict[str, float]
    own_cpu: float


class Connection(asyncio.Protocol):
    """Asks one request after the other over one connection.

    Args:
        load: Tells it what to do next.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self.asked_at = 0.0
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports have the methods, but not the base class.
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, message: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._received = b""
        self.waiting = True
        self.asked_at = time.perf_counter()
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        """See whether the answer is complete, and whether it is right."""
        if not self.waiting:
            self.close()
            self._load.note("something was sent that nobody had asked for")
            return
        self._received = self._received + data if self._received else data
        try:
            body = read_answer(self._received)
            if body is None:
                return
            check_answer(body, streamed=self._load.plan.streamed)
        except AnswerError as error:
            self.close()
            self._load.answered(self, str(error))
        else:
            self.waiting = False
            self._load.answered(self, None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Count the request that has lost its answer."""
        if self.waiting:
            self.waiting = False
            self._load.answered(self, "the connection was closed before the whole answer came")
        self._transport = None

    @property
    def open(self) -> bool:
        """Whether it can ask again."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Close it without counting anything."""
        self.waiting = False
        if self._transport is not None:
            self._transport.abort()


class Load:
    """Carries out a plan.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self.plan = plan
        body = request_body(streamed=plan.streamed, paced=plan.paced)
        self._message = request_message(plan.port, body)
        self._latencies = array("d")
        self._errors = 0
        self._reasons: list[str] = []
        self._to_ask = 0
        self._unanswered = 0
        self._idle = asyncio.Event()
        self._connections: list[Connection] = []

    async def run(self) -> LoadResult:
        """Warm up, measure, and close the connections.

        Raises:
            OSError: If a connection is refused.
        """
        loop = asyncio.get_running_loop()
        limit = loop.time() + self.plan.limit
        for _ in range(self.plan.connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", self.plan.port
            )
            self._connections.append(connection)
        try:
            await self._ask(self.plan.warm_up * self.plan.connections, limit)
            # What went wrong in the warm-up counts: it is part of "no error".
            self._latencies = array("d")
            before = self._cpu()
            own, begin = time.process_time(), time.perf_counter()
            await self._ask(self.plan.requests, limit)
            seconds = time.perf_counter() - begin
            own = time.process_time() - own
            return self._result(seconds, own, before, self._cpu())
        finally:
            for connection in self._connections:
                connection.close()

    async def _ask(self, requests: int, limit: float) -> None:
        """Ask so many requests over all connections, and wait for their answers."""
        self._to_ask = self._unanswered = requests
        self._idle.clear()
        for connection in self._connections:
            self._next(connection)
        if self._unanswered:
            try:
                async with asyncio.timeout_at(limit):
                    await self._idle.wait()
            except TimeoutError:
                self.note("the answer had not come in time", self._unanswered)
                self._to_ask = self._unanswered = 0

    def _next(self, connection: Connection) -> None:
        if self._to_ask and connection.open:
            self._to_ask -= 1
            connection.ask(self._message)
        elif self._to_ask and not any(other.open for other in self._connections):
            self.note("no connection was left to ask over", self._to_ask)
            self._unanswered -= self._to_ask
            self._to_ask = 0
        if not self._unanswered:
            self._idle.set()

    def answered(self, connection: Connection, problem: str | None) -> None:
        """Count an answer, and ask the next one."""
        self._latencies.append(time.perf_counter() - connection.asked_at)
        if problem is not None:
            self.note(problem)
        self._unanswered -= 1
        self._next(connection)

    def note(self, problem: str, count: int = 1) -> None:
        """Count something that went wrong, and keep the reason if it is a new one."""
        self._errors += count
        if len(self._reasons) < KEPT_REASONS and problem not in self._reasons:
            self._reasons.append(problem)

    def _cpu(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self.plan.watched.items()}

    def _result(
        self, seconds: float, own: float, before: dict[str, float], after: dict[str, float]
    ) -> LoadResult:
        latencies = sorted(self._latencies) or [0.0]
        return LoadResult(
            requests=len(self._latencies),
            errors=self._errors,
            reasons=self._reasons,
            seconds=seconds,
            p50=percentile(latencies, 0.5),
            p99=percentile(latencies, 0.99),
            cpu={name: after[name] - before[name] for name in after},
            own_cpu=own,
        )


async def carry_out(plan: LoadPlan) -> LoadResult:
    """Carry out a plan on the running event loop.

    Raises:
        OSError: If a connection is refused.
    """
    return await Load(plan).run()


def main() -> None:
    """Read the plan from the command line, print the result."""
    plan = LoadPlan(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(uvloop.run(carry_out(plan)))))


if __name__ == "__main__":
    main()
