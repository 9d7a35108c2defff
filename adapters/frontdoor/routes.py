"""The route table, and the one place where a request meets access control and the border.

Starlette's own `Route` compiles paths to regular expressions, makes request and response
objects, and raises its errors through two middlewares. Ours compares strings: that takes
a tenth of the time, and the decision about access stands beside the path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Receive, Scope, Send

from adapters.frontdoor.access import Access
from adapters.frontdoor.admin_endpoints import AdminEndpoints
from adapters.frontdoor.body_limits import ClientDisconnectedError
from adapters.frontdoor.openai_dialect import OPENAI, Dialect
from adapters.frontdoor.operation_endpoint import OPERATIONS, OperationEndpoint
from adapters.frontdoor.request_errors import MethodNotAllowedError, UnknownRouteError
from adapters.frontdoor.served_request import FrontDesk, ServedRequest
from adapters.frontdoor.service_endpoints import ServiceEndpoints, show_health, show_nothing
from engine.config import ServerConfig

Endpoint = Callable[[ServedRequest], Awaitable[None]]

ALWAYS_SERVED: Final = frozenset({"/healthz", "/health", "/readyz"})
"""Paths that are answered to the very end of a drain."""
MODELS_PREFIX: Final = "/v1/models/"
"""Below this an encoded slash belongs to a model's name, such as `org/model`."""
ADMIN_REQUESTS: Final = "/admin/requests"
ADMIN_PROVIDERS_PREFIX: Final = "/admin/providers/"
ADMIN_NAMES_BELOW: Final = (ADMIN_PROVIDERS_PREFIX.encode(), f"{ADMIN_REQUESTS}/".encode())
"""Below these an encoded slash belongs to a provider's name, or a request's id."""

_REST: Final = "{id:path}"


@dataclass(frozen=True, slots=True)
class Handler:
    """What one method of a route does, and for whom.

    Attributes:
        access: What it asks of its caller; there is no default on purpose.
        endpoint: Serves the request.
    """

    access: Access
    endpoint: Endpoint


class GatewayRoute(BaseRoute):
    """One path with its methods.

    Args:
        path: The exact path, or a prefix that ends with `{id:path}`.
        desk: What all requests share.
        handlers: By HTTP method. HEAD is answered like GET where it has no handler.
        dialect: The wire shape of errors.
    """

    def __init__(
        self,
        path: str,
        desk: FrontDesk,
        *,
        handlers: Mapping[str, Handler],
        dialect: Dialect = OPENAI,
    ) -> None:
        self.path = path
        self.handlers = dict(handlers)
        if "GET" in self.handlers:
            self.handlers.setdefault("HEAD", self.handlers["GET"])
        self.methods = set(self.handlers)
        self._desk = desk
        self._dialect = dialect
        self._prefix = path.removesuffix(_REST) if path.endswith(_REST) else None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Compare the path; which method it is is judged by `handle`."""
        if scope["type"] != "http":
            return Match.NONE, {}
        path: str = scope["path"]
        if scope.get("root_path"):
            # Mounted: Starlette leaves the mount's own path in front.
            path = path.removeprefix(scope["root_path"])
        if self._prefix is not None:
            name = path.removeprefix(self._prefix)
            if name and name != path:
                return Match.FULL, {"path_params": {"id": name}}
        elif path == self.path and b"%" not in scope.get("raw_path", b""):
            return Match.FULL, {}
        return Match.NONE, {}

    def url_path_for(self, name: str, /, **path_params: str) -> URLPath:
        """Refuse: these routes have no names.

        Raises:
            NoMatchFound: Always.
        """
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the exchange reads
        """Serve one request: access first, then the endpoint, and an answer whatever it raises.

        Raises:
            ClientDisconnectedError: If the client left; the request's border takes it.
        """
        request = ServedRequest(self._desk, scope, send, route=self.path, dialect=self._dialect)
        try:
            handler = self._handler(scope["method"])
            self._desk.access.check(handler.access, scope=scope, headers=request.headers)
            await handler.endpoint(request)
        except ClientDisconnectedError:
            raise
        except Exception as error:  # noqa: BLE001 - the border: every failure gets an answer
            await request.fail(error)
        finally:
            request.finish()

    def _handler(self, method: str) -> Handler:
        handler = self.handlers.get(method)
        if handler is None:
            raise MethodNotAllowedError(", ".join(sorted(self.methods)))
        return handler

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {self.handlers[name].access}" for name in sorted(self.handlers))
        return f"GatewayRoute({self.path!r}, {shown})"


class UnknownRoute:
    """Answers whatever no route matches: with 404, whoever asks."""

    __slots__ = ("_desk",)

    def __init__(self, desk: FrontDesk) -> None:
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the exchange reads
        """Serve one request."""
        request = ServedRequest(self._desk, scope, send, route=None, dialect=OPENAI)
        try:
            await request.fail(UnknownRouteError())
        finally:
            request.finish()


def make_routes(desk: FrontDesk, server: ServerConfig) -> list[BaseRoute]:
    """Every route of the gateway's own listener, those that are asked most first.

    Args:
        desk: What all requests share.
        server: Says whether and where there are admin routes.
    """
    service = ServiceEndpoints(desk, [row.path for row in OPERATIONS])
    health = {"GET": Handler(Access.OPEN, show_health)}
    table: dict[str, dict[str, Handler]] = {
        "/healthz": health,
        "/health": health,
        "/readyz": {"GET": Handler(Access.OPEN, service.show_readiness)},
        "/v1/models": {"GET": Handler(Access.KEY, service.list_models)},
        f"{MODELS_PREFIX}{_REST}": {"GET": Handler(Access.KEY, service.show_model)},
        "/": {
            "GET": Handler(Access.KEY, service.show_root),
            "HEAD": Handler(Access.OPEN, show_nothing),
        },
    }
    operations: list[BaseRoute] = [
        GatewayRoute(
            row.path,
            desk,
            handlers={"POST": Handler(Access.KEY, OperationEndpoint(desk, row))},
            dialect=row.dialect,
        )
        for row in OPERATIONS
    ]
    if server.admin_port is None:
        table["/status"] = {"GET": Handler(Access.OPERATOR, service.show_status)}
    rest = [GatewayRoute(path, desk, handlers=how) for path, how in table.items()]
    if server.admin_port is None and server.admin_key_env is not None:
        rest += make_admin_routes(desk, alone=False)
    return [*operations, *rest]


def make_admin_routes(desk: FrontDesk, *, alone: bool) -> list[GatewayRoute]:
    """The admin routes.

    Args:
        desk: What all requests share.
        alone: Whether they are on a listener of their own, which has `/status` and health,
            too, and may be read from this machine without a key.
    """
    admin = AdminEndpoints(desk)
    reading = Access.OPERATOR if alone else Access.ADMIN
    table = {
        "/admin/status": {"GET": Handler(reading, admin.show_status)},
        "/admin/reload": {"POST": Handler(Access.ADMIN, admin.reload)},
        f"{ADMIN_PROVIDERS_PREFIX}{_REST}": {"POST": Handler(Access.ADMIN, admin.change_provider)},
        ADMIN_REQUESTS: {"GET": Handler(reading, admin.list_requests)},
        f"{ADMIN_REQUESTS}/{_REST}": {"GET": Handler(reading, admin.show_request)},
    }
    if alone:
        service = ServiceEndpoints(desk, [])
        table["/status"] = {"GET": Handler(Access.OPERATOR, service.show_status)}
        table["/healthz"] = {"GET": Handler(Access.OPEN, show_health)}
        table["/readyz"] = {"GET": Handler(Access.OPEN, service.show_readiness)}
    return [GatewayRoute(path, desk, handlers=how) for path, how in table.items()]
