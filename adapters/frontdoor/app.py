"""The gateway as an ASGI application: `create_app` gives a Starlette application.

```python
app = create_app(config)
run_server(app, listener=listener, settings=app.settings, draining=app.draining)
```

It runs under any ASGI server, and can be mounted in another application; there, whoever
mounts it enters the router that it was given. The request border and the framing gate
stand around it in any case: `adapters.frontdoor.server` puts them there, and under
another server the application does so itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Router as RouteTable
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.frontdoor.access import AccessControl
from adapters.frontdoor.admin_server import make_admin_app
from adapters.frontdoor.body_limits import ExchangeLimits
from adapters.frontdoor.border import exchange_of
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.gate import OnRefusal
from adapters.frontdoor.routes import (
    ADMIN_NAMES_BELOW,
    ALWAYS_SERVED,
    MODELS_PREFIX,
    UnknownRoute,
    make_routes,
)
from adapters.frontdoor.served_request import FrontDesk, RecordSink
from adapters.frontdoor.server import ServerSettings, guarded
from adapters.frontdoor.server_span import ServerSpans
from engine.config import GatewayConfig, ServerConfig
from engine.metrics import observe_router
from engine.router import Router

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from adapters.configuration.reloading import ConfigurationReload


class GatewayApp(Starlette):
    """The gateway's Starlette application; made by `create_app`.

    Attributes:
        engine: The router that serves the requests; entered and left by the lifespan.
        settings: How the server has to behave, as the configuration says.
        draining: Whether the server is going away; the server moves it, readiness reads it.
        admin: The application for the listener at `server.admin_port`; None without one.
    """

    def __init__(
        self,
        desk: FrontDesk,
        server: ServerConfig,
        *,
        admin: ASGIApp | None,
        meter_provider: MeterProvider | None,
    ) -> None:
        super().__init__()
        self.engine = desk.router
        self.admin = admin
        self.settings = settings = server_settings(server, on_refusal=desk.log_refusal)
        self.draining = desk.draining
        self.router = RouteTable(
            make_routes(desk, server),
            redirect_slashes=False,
            default=UnknownRoute(desk),
            lifespan=lambda _app: RouterLifespan(self.engine, meter_provider),
        )
        self._guarded = guarded(super().__call__, settings=settings, draining=self.draining)

    def build_middleware_stack(self) -> ASGIApp:
        """Put added middleware around the routes; these answer all their errors themselves."""
        # Not `self.router` itself: that would only call this, at the cost of one more hop.
        app: ASGIApp = self.router.app
        for middleware, args, kwargs in reversed(self.user_middleware):
            app = middleware(app, *args, **kwargs)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope, behind border and gate whoever the server is."""
        if scope["type"] == "lifespan" or _is_guarded(scope):
            await super().__call__(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)


class RouterLifespan:
    """Enters and leaves the router in the lifespan's own task; a failure is the app's failure.

    Args:
        router: The engine.
        meter_provider: Where its counters go; None takes the process's provider.
    """

    __slots__ = ("_meter_provider", "_router")

    def __init__(self, router: Router, meter_provider: MeterProvider | None) -> None:
        self._router = router
        self._meter_provider = meter_provider

    async def __aenter__(self) -> None:
        await self._router.__aenter__()
        observe_router(self._router.status, self._meter_provider)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._router.__aexit__(exc_type, exc, traceback)


def create_app(
    config: GatewayConfig,
    *,
    router: Router | None = None,
    request_log: RecordSink | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    draining: Draining | None = None,
    reloading: ConfigurationReload | None = None,
    clock: Callable[[], float] = time.perf_counter,
    environment: Mapping[str, str] | None = None,
) -> GatewayApp:
    """Make the gateway's application. No I/O; the engine starts with the lifespan.

    Args:
        config: The configuration.
        router: The engine to use; None makes one from `config`.
        request_log: Takes one record for each request; None keeps none.
        tracer_provider: Where spans go; None takes the process's provider.
        meter_provider: Where the engine's counters go; None takes the process's provider.
        draining: Shared with the server; None makes one.
        reloading: Puts the configuration file into service again, for `POST /admin/reload`
            and `/status`; None if there is no file.
        clock: Monotonic seconds, for durations.
        environment: Where the API keys are read from, now and never again; None takes the
            process's own.

    Raises:
        ConfigurationError: If a provider cannot be made as configured, or a variable that
            is to hold API keys is missing or empty.
    """
    environment = os.environ if environment is None else environment
    draining = Draining() if draining is None else draining
    draining.always_served |= ALWAYS_SERVED
    if router is None:
        router = make_router(config, tracer_provider)
    spans = ServerSpans(tracer_provider)

    def desk(*, admin_listener: bool) -> FrontDesk:
        access = AccessControl(config.server, environment, admin_listener=admin_listener)
        return FrontDesk(
            router,
            access=access,
            spans=spans,
            request_log=request_log,
            draining=draining,
            clock=clock,
            reloading=reloading,
        )

    admin = None
    if config.server.admin_port is not None:
        admin = make_admin_app(desk(admin_listener=True))
    return GatewayApp(
        desk(admin_listener=False), config.server, admin=admin, meter_provider=meter_provider
    )


def make_router(config: GatewayConfig, tracer_provider: TracerProvider | None = None) -> Router:
    """Make the engine of a gateway, with what only the process around it knows.

    Args:
        config: The configuration.
        tracer_provider: Where spans go; None takes the process's provider.

    Raises:
        ConfigurationError: If a provider cannot be made as configured.
    """
    wall_clock = time.time  # noqa: TID251 - the dates of requests are the wall clock's
    return Router.from_config(config, tracer_provider=tracer_provider, wall_clock=wall_clock)


def server_settings(config: ServerConfig, *, on_refusal: OnRefusal | None = None) -> ServerSettings:
    """How the server has to behave, as the configuration says.

    Args:
        config: The part of the configuration that speaks of the server.
        on_refusal: Hears of every request that the framing gate refuses.
    """
    return ServerSettings(
        pre_stop_seconds=config.pre_stop,
        drain_seconds=config.drain,
        limits=ExchangeLimits(body_bytes=config.max_body_bytes),
        encoded_slash_below=(MODELS_PREFIX.encode(), *ADMIN_NAMES_BELOW),
        on_refusal=on_refusal,
    )


def _is_guarded(scope: Scope) -> bool:
    try:
        exchange_of(scope)
    except RuntimeError:
        return False
    return True
