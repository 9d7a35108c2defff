"""`Router`: the routing engine as its users see it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.lowlevel
from pydantic import ValidationError

from engine.actor import ProviderActor
from engine.config import GatewayConfig
from engine.dispatcher import Dispatcher
from engine.errors import (
    ConfigurationError,
    InvalidRequestError,
    ModelNotFoundError,
    RouterClosedError,
)
from engine.event_loop import native_clock, native_event
from engine.factory import ProviderFactory
from engine.ledger import Ledger, Outcome
from engine.model_catalogue import ModelCatalogue, ModelEntry
from engine.operations import ChatRequest, EmbeddingRequest, Request, Response
from engine.plan import Plan, make_plans
from engine.provider import BaseProvider
from engine.provider_lifetime import close_providers, start_providers
from engine.registry import ProviderRegistry
from engine.request_run import RequestRun, RunningEngine
from engine.resilience.deadline import DeadlineWheel
from engine.resilience.limits import rate_limits
from engine.status import ActorState, RouterStatus
from engine.stream_opening import StreamOpening
from engine.supervisor import Supervisor
from engine.telemetry import Telemetry

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

CLOSE_GRACE = 5.0
"""Seconds that callers have to take their answers when the router closes."""

SYSTEM_RANDOM = random.SystemRandom()
"""Seeds and id prefixes only: every other choice comes from the router's own generator."""


class Router:
    """Spreads requests over providers by weight and keeps serving when some fail.

    Use it as an async context manager: it owns every task and connection.

    ```python
    async with Router.from_config(config) as router:
        response = await router.complete({"model": "chat", "messages": [...]})
    ```

    Args:
        config: The configuration.
        registry: Providers by name; those it lacks are made by `ProviderFactory`. The
            router closes the ones it made, and no others.
        rng: Source of all random choices; None seeds one from `config.seed`.
        clock: Monotonic seconds; None takes the event loop's own clock.
        tracer_provider: Where spans go; None takes the process's provider.

    Raises:
        ConfigurationError: If a provider cannot be made as configured.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        registry: ProviderRegistry | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.config = config
        self._seed = config.seed if config.seed is not None else SYSTEM_RANDOM.getrandbits(64)
        self._rng = rng or random.Random(self._seed)
        self._given_clock = clock
        self._clock: Callable[[], float] = clock or anyio.current_time
        self._telemetry = Telemetry(tracer_provider)
        self._own: list[BaseProvider] = []
        self._providers: dict[str, BaseProvider] = {}
        for provider_config in config.providers:
            if not provider_config.enabled:
                continue
            if registry is not None and provider_config.name in registry:
                provider = registry.get_provider(provider_config.name)
            else:
                provider = ProviderFactory.create_provider(provider_config)
                self._own.append(provider)
            self._providers[provider_config.name] = provider
        self._actors: tuple[ProviderActor, ...] = ()
        self._plans: dict[str, Plan] = {}
        self._any_model: Plan | None = None
        self._ledger = Ledger()
        self._catalogue = ModelCatalogue(config, self._providers)
        # Unique for the process's life and over processes, without a draw per request.
        self._id_prefix = f"req-{SYSTEM_RANDOM.randbytes(6).hex()}-"
        self._ids = 0
        self._group: TaskGroup | None = None
        self._accepting = False
        self._entered = False
        self._seen = 0.0

    @classmethod
    def from_config(cls, config: GatewayConfig | Mapping[str, Any], **options: Any) -> Self:
        """Make a router from a `GatewayConfig` or the same as a mapping.

        Args:
            config: The configuration.
            options: Further arguments of `Router`.

        Raises:
            ConfigurationError: If the configuration is wrong; says what and where.
        """
        if not isinstance(config, GatewayConfig):
            try:
                config = GatewayConfig.model_validate(config)
            except ValidationError as error:
                findings = [
                    f"{'.'.join(map(str, found['loc'])) or 'configuration'}: {found['msg']}"
                    for found in error.errors(include_input=False, include_url=False)
                ]
                raise ConfigurationError("; ".join(findings)) from None
        return cls(config, **options)

    # ── requests ─────────────────────────────────────────────────────────────────

    async def complete(
        self,
        request: Request | Mapping[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the request's deadline
        request_id: str | None = None,
        context: Context | None = None,
    ) -> Response:
        """Get a whole answer.

        Args:
            request: A request, or the JSON object of a chat completion.
            timeout: Seconds within which to be answered; never extends the configured total.
            request_id: The request's id; None makes one.
            context: Trace context of the caller; None takes the current one.

        Raises:
            InvalidRequestError: If the request cannot be served by anybody as it is.
            RejectedError: If nobody can take it now; nothing was sent.
            DeadlineExceededError: If its time is over.
            ProviderError: If every attempt failed; this is the last one's failure.
        """
        if not isinstance(request, Request):
            request = ChatRequest.from_body(request)
        run = self._accept(request.as_streamed(False), False, timeout, request_id, context)
        return await run.respond()

    def stream(
        self,
        request: Request | Mapping[str, Any],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        context: Context | None = None,
    ) -> StreamOpening:
        """Get an answer in chunks: `async with router.stream(request) as stream`.

        Entering waits for the first useful event; until then everything may be retried.
        Arguments are those of `complete`.

        Raises:
            InvalidRequestError: On entering, and so for all that `complete` raises.
            StreamTruncatedError: On reading, if the stream broke.
        """

        def accept() -> RequestRun:
            asked = request if isinstance(request, Request) else ChatRequest.from_body(request)
            return self._accept(asked.as_streamed(True), True, timeout, request_id, context)

        return StreamOpening(accept)

    async def embed(
        self,
        request: Request | Mapping[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the request's deadline
        request_id: str | None = None,
    ) -> Response:
        """Get embeddings; like `complete`, for an `EmbeddingRequest` or its JSON object.

        Raises:
            GatewayError: As `complete` does.
        """
        if not isinstance(request, Request):
            request = EmbeddingRequest.from_body(request)
        return await self.complete(request, timeout=timeout, request_id=request_id)

    async def list_models(self) -> list[ModelEntry]:
        """The models that can be asked for, and who serves them.

        With configured models, those. Without, every provider is asked for its own; the
        answer is kept for a while, and a provider that cannot say is left out.
        """
        return await self._catalogue.list_models()

    def _accept(
        self,
        request: Request,
        streamed: bool,
        timeout: float | None,
        request_id: str | None,
        context: Context | None,
    ) -> RequestRun:
        """Count a request in, with its id, its plan and its deadline."""
        if not self._accepting:
            raise RouterClosedError(
                "the router is closing" if self._entered else "enter the router before using it"
            )
        plan = self._plans.get(request.model) or self._any_model
        if plan is None:
            raise self._unknown(request)
        if timeout is not None and not (0 < timeout < math.inf):
            msg = f"timeout must be a positive number of seconds, not {timeout!r}"
            raise InvalidRequestError(msg, param="timeout")
        if request_id is None:
            self._ids += 1
            request_id = f"{self._id_prefix}{self._ids}"
        total = plan.total if timeout is None else min(timeout, plan.total)
        now = self._seen = self._clock()
        run = RequestRun(
            request,
            request_id,
            engine=self._engine,
            plan=plan,
            now=now,
            deadline=now + total,
            streamed=streamed,
            context=context,
        )
        self._ledger.open(run)
        return run

    def _unknown(self, request: Request) -> ModelNotFoundError:
        """Count a request for an unknown model in and out again."""
        self._ledger.open(request)
        self._ledger.settle(request, Outcome.REJECTED)
        known = ", ".join(list(self._plans)[:10])
        shown = request.model[:100]
        return ModelNotFoundError(
            f"the model {shown!r} is not served here (known: {known})", param="model"
        )

    # ── state ────────────────────────────────────────────────────────────────────

    @property
    def ready(self) -> bool:
        """Whether requests can be served now."""
        return self._accepting and any(
            actor.state is ActorState.SERVING and actor.config.weight > 0 for actor in self._actors
        )

    def status(self) -> RouterStatus:
        """A snapshot of everything: requests in and out, and each actor's state."""
        now = self._now()
        picks = sum(actor.picked for actor in self._actors)
        return RouterStatus(
            ready=self.ready,
            ledger=self._ledger.status(),
            actors=tuple(actor.status(now, picks) for actor in self._actors),
            seed=self._seed,
        )

    def _now(self) -> float:
        """The current instant, or the latest known one in a foreign thread."""
        if self._entered:
            try:
                self._seen = self._clock()
            except RuntimeError:
                # Trio tells the time in its own thread only; metrics are read in another.
                return self._seen
        return self._seen

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the configured models; empty when every name is served."""
        return tuple(self._plans)

    # ── life ─────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        if self._entered:
            msg = "a router can be entered once only: make another one"
            raise RuntimeError(msg)
        self._entered = True
        self._clock = self._given_clock or native_clock()
        self._wheel = DeadlineWheel(self._clock)
        self._event = native_event()
        try:
            self._actors = tuple(self._make_actor(p) for p in self._providers.values())
            await start_providers(self._own)
        except BaseException:
            await close_providers(self._own)
            raise
        actors = {actor.name: actor for actor in self._actors}
        self._plans, self._any_model = make_plans(self.config, actors, self._rng)
        self._engine = RunningEngine(
            clock=self._clock,
            event=self._event,
            dispatcher=Dispatcher(),
            wheel=self._wheel,
            ledger=self._ledger,
            telemetry=self._telemetry,
        )
        self._supervisor = Supervisor(self._actors, clock=self._clock, rng=self._rng)
        self._group = await anyio.create_task_group().__aenter__()
        self._group.start_soon(self._run)
        try:
            while any(actor.state is ActorState.STARTING for actor in self._actors):
                await anyio.lowlevel.checkpoint()
        except BaseException as error:
            # Cancelled while it is entered: nobody else would leave it.
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        self._accepting = True
        return self

    async def _run(self) -> None:
        async with anyio.create_task_group() as group:
            # The limits are watched until the last actor has ended, or a caller whose
            # adapter hangs in its clean-up would wait for it beyond its deadline.
            watch = anyio.CancelScope(shield=True)

            async def watch_limits() -> None:
                with watch:
                    await self._wheel.run()

            group.start_soon(watch_limits)
            try:
                await self._supervisor.run()
            finally:
                watch.cancel()

    async def drain(self, seconds: float) -> bool:
        """Take no new requests, and wait until those in flight have ended.

        Returns:
            Whether all ended within `seconds`.
        """
        self._accepting = False
        with anyio.move_on_after(seconds):
            await self._ledger.wait_empty()
        return self._ledger.in_flight == 0

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._accepting = False
        assert self._group is not None
        # First the reason, then the cancellation: whoever is answered by it is told why.
        self._supervisor.stop()
        self._group.cancel_scope.cancel()
        try:
            await self._group.__aexit__(None, None, None)
        finally:
            # Callers in other tasks have their answers; let them take them.
            with anyio.move_on_after(CLOSE_GRACE, shield=True):
                await self._ledger.wait_empty()
            # A stream that was read ahead to its end has no worker left to cut it.
            for run in self._ledger.entries():
                if isinstance(run, RequestRun):
                    run.cut("the gateway is closing")
            await close_providers(self._own)

    def _make_actor(self, provider: BaseProvider) -> ProviderActor:
        limits = provider.config.limits
        return ProviderActor(
            provider,
            clock=self._clock,
            rng=self._rng,
            wheel=self._wheel,
            telemetry=self._telemetry,
            event=self._event,
            rate_limits=rate_limits(provider.name, limits, self._clock),
        )

    def __repr__(self) -> str:
        state = "open" if self._accepting else "closed"
        return (
            f"Router({len(self._providers)} providers, {self._ledger.in_flight} in flight, {state})"
        )
