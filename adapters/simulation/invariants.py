"""`Referee`: checks at each step of a simulation that the engine keeps its promises.

It believes nothing that the engine says of itself: attempts are counted where they arrive,
at the upstreams, and endings where they are heard, at the callers. The numbers of
the promises are those of the project's list of invariants; docs/SIMULATION.md says what each means.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.simulation.terms import Terms
from adapters.simulation.upstream import Call
from engine.ledger import Outcome

if TYPE_CHECKING:
    from adapters.simulation.requests import Asked
    from adapters.simulation.upstream import Upstream
    from adapters.simulation.virtual_loop import VirtualLoop
    from engine.attempt import Attempt
    from engine.config import ProviderConfig, RetryBudgetConfig
    from engine.status import RouterStatus

PROMPT = 0.1 + 1e-6
"""Seconds after a deadline within which everything about the request has ended."""

CLOSING = 1.0 + 1e-6
"""Seconds after a caller's ending within which the call made for it is closed."""

MINUTE = 60.0
MAX_KEPT = 50
"""Broken promises that are kept with their words; the rest is only counted."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that was broken.

    Attributes:
        invariant: Its number: `I1`.
        at: When, seconds from the start.
        what: In words.
    """

    invariant: str
    at: float
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at:.3f} s: {self.what}"


class ProviderLimits:
    """What one provider may be given, over configurations that follow each other."""

    def __init__(self, config: ProviderConfig) -> None:
        self.current = config.limits
        self._config = config
        self._former: list[tuple[float, int]] = []
        self.starts: deque[float] = deque()

    def change(self, config: ProviderConfig, now: float, lasting: float) -> None:
        """Another actor serves from now on; the calls of the former may last a while."""
        if config == self._config:
            return
        self._config = config
        self._former = [entry for entry in self._former if entry[0] > now]
        self._former.append((now + lasting, self.current.concurrency))
        self.current = config.limits
        self.starts.clear()

    def allowed(self, now: float) -> int:
        """Calls that may be open at the same time."""
        return self.current.concurrency + sum(n for until, n in self._former if until > now)

    def exceeds_rate(self, now: float) -> bool:
        """Count a start, and tell whether the last minute saw too many.

        A minute sees at most 1.1 times the rate: the bucket holds a tenth of a minute.
        """
        rate = self.current.requests_per_minute
        if rate is None:
            return False
        starts = self.starts
        starts.append(now)
        while starts[0] <= now - MINUTE:
            starts.popleft()
        return len(starts) > rate + max(1.0, rate / 10) + 1


class Referee:
    """Watches upstreams, callers and the router's own status.

    Args:
        loop: Where time comes from.
        terms: What the configuration promises.

    Attributes:
        accepted: Requests that the router has taken in.
        attempts: Calls that upstreams have seen.
        outcomes: Endings as the callers heard them.
        open: Requests that have not ended, by id.
        broken: The first promises that were broken.
        broken_count: How many were.
        checks: Checks that were made.
    """

    def __init__(self, loop: VirtualLoop, terms: Terms) -> None:
        self._loop = loop
        self._begun = loop.time()
        self._terms = [terms]
        self._limits = {name: ProviderLimits(made) for name, made in terms.providers.items()}
        self._serial = 0
        self._hedging = any(model.hedged for model in terms.models.values())
        self._repeats = 0.0
        self._answered_at_once = 0
        self._granted = 0.0
        self._budget_since = self._begun, 0
        self.accepted = 0
        self.attempts = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.open: dict[str, Asked] = {}
        self.broken: list[Broken] = []
        self.broken_count = 0
        self.checks = 0

    def report(self, invariant: str, what: str) -> None:
        """Note a broken promise."""
        self.broken_count += 1
        if len(self.broken) < MAX_KEPT:
            self.broken.append(Broken(invariant, round(self._loop.time() - self._begun, 6), what))

    # ── what is promised ─────────────────────────────────────────────────────────

    def reload_begins(self, terms: Terms) -> None:
        """Until it is done, requests may be taken in under the old or the new terms."""
        self._terms = [terms, self._terms[0]]
        now = self._loop.time()
        lasting = max(
            [model.total for t in self._terms for model in (*t.models.values(), t.others)]
        )
        for name, made in terms.providers.items():
            known = self._limits.get(name)
            if known is None:
                self._limits[name] = ProviderLimits(made)
            else:
                known.change(made, now, lasting + CLOSING)

    def reload_ends(self, *, applied: bool) -> None:
        """From now on only the new terms hold, or the old ones if it was refused."""
        if applied:
            # What the former budget allowed may have been used, and the next one begins full.
            now = self._loop.time()
            self._granted = self._allowed_repeats(now, self._terms[1].budget)
            self._budget_since = now, self._first_successes()
        del self._terms[1 if applied else 0]

    # ── requests ─────────────────────────────────────────────────────────────────

    def taken_in(self, asked: Asked, request_id: str) -> None:
        """The router is given a request."""
        now = self._loop.time()
        model = asked.request.model
        terms = self._terms[0].of_model(model)
        total, max_attempts = terms.total, terms.max_attempts
        streamed = asked.request.streamed
        twice = terms.may_be_billed_twice(streamed=streamed)
        if len(self._terms) > 1:
            other = self._terms[1].of_model(model)
            total, max_attempts = max(total, other.total), max(max_attempts, other.max_attempts)
            twice = twice or other.may_be_billed_twice(streamed=streamed)
        asked.begun = now
        if asked.timeout is not None and asked.timeout < total:
            total = asked.timeout
        asked.deadline = now + total
        asked.max_attempts = max_attempts
        asked.may_be_billed_twice = twice
        self.accepted += 1
        self.open[request_id] = asked

    def ended(self, asked: Asked, request_id: str, outcome: Outcome) -> None:
        """The caller has the ending."""
        now = self._loop.time()
        asked.ended = now
        del self.open[request_id]
        self.outcomes[outcome] += 1
        self.checks += 1
        if now > asked.deadline + PROMPT:
            late = now - asked.deadline
            self.report("I3", f"{request_id} heard its ending {late:.3f} s after its deadline")

    def not_taken_in(self, request_id: str) -> None:
        """The router had closed its door: it counts nothing."""
        self.accepted -= 1
        del self.open[request_id]

    def told_attempts(self, asked: Asked, request_id: str, told: int) -> None:
        """An answer, or the beginning of a stream, says how many attempts it took."""
        self.checks += 1
        self._answered_at_once += asked.attempts == 1
        if told != asked.attempts and not self._hedging:
            self.report(
                "I2", f"{request_id} is told of {told} attempts, {asked.attempts} were made"
            )

    # ── calls upstream ───────────────────────────────────────────────────────────

    def call_begins(self, upstream: Upstream, attempt: Attempt) -> Call:
        """See `Watcher`."""
        now = self._loop.time()
        self.attempts += 1
        self._serial += 1
        self.checks += 1
        asked = self.open.get(attempt.request_id)
        if asked is None:
            self.report("I2", f"{attempt.request_id} was sent to {upstream.name} after its ending")
        else:
            asked.attempts += 1
            if now >= asked.deadline:
                self.report("I3", f"{attempt.request_id} was sent after its deadline")
            if asked.attempts > asked.max_attempts:
                self.report("I6", f"{attempt.request_id} took {asked.attempts} attempts")
            if asked.attempts > 1:
                self._check_repeat(asked, attempt.request_id)
        limits = self._limits[upstream.name]
        if upstream.running >= limits.current.concurrency and upstream.running >= limits.allowed(
            now
        ):
            self.report("I7", f"{upstream.running + 1} calls are open at {upstream.name}")
        if limits.exceeds_rate(now):
            self.report("I7", f"{len(limits.starts)} calls within a minute at {upstream.name}")
        return Call(upstream, asked, now, self._serial)

    def _check_repeat(self, asked: Asked, request_id: str) -> None:
        # Going elsewhere from a provider that could not be reached takes half a token.
        self._repeats += 0.5 if asked.unreachable else 1.0
        if asked.committed:
            self.report("I2", f"{request_id} was sent again after its caller had seen a part")
        if asked.maybe_billed and not asked.may_be_billed_twice:
            self.report("I14", f"{request_id} was sent again though it may have been executed")

    def call_ends(self, call: Call) -> None:
        """See `Watcher`."""
        asked = call.asked
        if asked is not None:
            self.checks += 1
            self._check_end(asked, call.upstream.name)

    def _check_end(self, asked: Asked, name: str) -> None:
        now = self._loop.time()
        if now > asked.deadline + PROMPT:
            late = now - asked.deadline
            self.report("I3", f"a call at {name} ran {late:.3f} s past its request's deadline")
        if asked.ended is not None and now > asked.ended + CLOSING:
            late = now - asked.ended
            self.report("I4", f"a call at {name} ran {late:.3f} s after its caller had left")

    # ── at each step, and at the end ─────────────────────────────────────────────

    def inspect(self, status: RouterStatus, upstreams: Iterable[Upstream]) -> None:
        """Check what must hold at any instant."""
        self.checks += 1
        ledger = status.ledger
        if ledger.conservation_error:
            self.report("I1", f"the ledger is off by {ledger.conservation_error} requests")
        if ledger.accepted != self.accepted:
            self.report("I1", f"{self.accepted} were asked, {ledger.accepted} counted in")
        if ledger.in_flight > len(self.open):
            self.report("I1", f"{ledger.in_flight} in flight, {len(self.open)} callers wait")
        self._inspect_mailboxes(status)
        self._inspect_time(upstreams)
        self._check_amplification(self._loop.time())

    def _inspect_mailboxes(self, status: RouterStatus) -> None:
        for actor in status.actors:
            mailbox = actor.mailbox
            if mailbox.depth > mailbox.capacity:
                self.report("I5", f"{mailbox.depth} wait in the mailbox of {actor.name}")
            if mailbox.offered != mailbox.taken + mailbox.withdrawn + mailbox.depth:
                self.report("I1", f"the mailbox of {actor.name} has lost a request")

    def _inspect_time(self, upstreams: Iterable[Upstream]) -> None:
        now = self._loop.time()
        for request_id, asked in self.open.items():
            if now > asked.deadline + PROMPT:
                self.report("I3", f"{request_id} is still open after its deadline")
        for upstream in upstreams:
            for call in upstream.calls:
                if call.asked is not None:
                    self._check_end(call.asked, upstream.name)

    def _check_amplification(self, now: float) -> None:
        allowed = self._allowed_repeats(now, self._terms[0].budget)
        if self._repeats > allowed + 1e-6:
            self.report("I6", f"repeats for {self._repeats:g} tokens, {allowed:.1f} were there")

    def _allowed_repeats(self, now: float, budget: RetryBudgetConfig) -> float:
        """Tokens that there have been so far: at the start, by first successes, by time."""
        since, before = self._budget_since
        return self._granted + (
            budget.capacity
            + budget.per_success * (self._first_successes() - before)
            + budget.per_second * (now - since)
        )

    def _first_successes(self) -> int:
        # An answer may come in the very turn in which its caller leaves.
        return self._answered_at_once + self.outcomes[Outcome.CANCELLED]

    def inspect_rest(self, status: RouterStatus, upstreams: Iterable[Upstream]) -> None:
        """Check what must hold once nobody waits any more."""
        self.inspect(status, upstreams)
        if self.open:
            self.report("I1", f"{len(self.open)} callers never heard anything")
        if status.ledger.in_flight:
            self.report("I4", f"{status.ledger.in_flight} requests are left in flight")
        heard = {outcome: self.outcomes[outcome] for outcome in Outcome}
        if status.ledger.outcomes != heard:
            told = _words(status.ledger.outcomes)
            self.report("I2", f"the ledger says {told}; the callers heard {_words(heard)}")
        for actor in status.actors:
            if actor.in_flight or actor.mailbox.depth:
                self.report("I4", f"{actor.name} is left with {actor.in_flight} in flight")
        for upstream in upstreams:
            if upstream.running:
                self.report("I4", f"{upstream.running} calls are left open at {upstream.name}")


def _words(outcomes: dict[Outcome, int]) -> str:
    return ", ".join(f"{outcome.value} {count}" for outcome, count in outcomes.items() if count)
