"""`Acceptance`: takes requests in, each with an id, a deadline and a configuration."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from engine.errors import InvalidRequestError, ModelNotFoundError
from engine.ledger import Outcome
from engine.operations import Request
from engine.priority import Priority
from engine.reloader import Reloader
from engine.request_attempts import RunningEngine
from engine.request_run import RequestRun

if TYPE_CHECKING:
    from opentelemetry.context import Context

SYSTEM_RANDOM = random.SystemRandom()
"""Seeds and id prefixes only: every other choice comes from the router's own generator."""

SHOWN_MODELS = 10
SHOWN_CHARACTERS = 100


class Acceptance:
    """Counts requests in. Each keeps the generation that it meets here to its end.

    Args:
        engine: What all requests share.
        reloader: Holds the current generation.

    Attributes:
        seen: The instant of the latest request.
    """

    def __init__(self, engine: RunningEngine, reloader: Reloader) -> None:
        self.seen = engine.clock()
        self._engine = engine
        self._clock = engine.clock
        self._ledger = engine.ledger
        self._reloader = reloader
        # Unique for the process's life and over processes, without a draw per request.
        self._id_prefix = f"req-{SYSTEM_RANDOM.randbytes(6).hex()}-"
        self._ids = 0

    def accept(  # noqa: PLR0917 - called for each request, and keywords have their price
        self,
        request: Request,
        streamed: bool,
        timeout: float | None,
        request_id: str | None,
        context: Context | None,
        priority: Priority,
    ) -> RequestRun:
        """Count a request in, with its id, its plan and its deadline.

        Raises:
            ModelNotFoundError: If its model is not served.
            InvalidRequestError: If the timeout is no positive number of seconds.
        """
        generation = self._reloader.current
        plan = generation.plans.get(request.model) or generation.any_model
        if plan is None:
            raise self._unknown(request)
        if timeout is not None and not (0 < timeout < math.inf):
            msg = f"timeout must be a positive number of seconds, not {timeout!r}"
            raise InvalidRequestError(msg, param="timeout")
        if request_id is None:
            self._ids += 1
            request_id = f"{self._id_prefix}{self._ids}"
        total = plan.total if timeout is None else min(timeout, plan.total)
        now = self.seen = self._clock()
        run = RequestRun(
            request,
            request_id,
            engine=self._engine,
            plan=plan,
            generation=generation,
            now=now,
            deadline=now + total,
            streamed=streamed,
            context=context,
            priority=priority,
        )
        self._ledger.open(run)
        return run

    def _unknown(self, request: Request) -> ModelNotFoundError:
        """Count a request for an unknown model in and out again."""
        self._ledger.open(request)
        self._ledger.settle(request, Outcome.REJECTED)
        known = ", ".join(list(self._reloader.current.plans)[:SHOWN_MODELS])
        shown = request.model[:SHOWN_CHARACTERS]
        return ModelNotFoundError(
            f"the model {shown!r} is not served here (known: {known})", param="model"
        )
