"""A listener of its own for the admin routes, in the same process and on the same event loop.

It opens when the gateway serves and closes after the gateway's own drain is over, so that an
operator can watch the drain to its end.
"""

from __future__ import annotations

import logging
import socket

import anyio
from starlette.routing import Router as RouteTable
from starlette.types import ASGIApp

from adapters.frontdoor.admin_endpoints import MAX_BODY
from adapters.frontdoor.body_limits import ExchangeLimits
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.routes import ADMIN_NAMES_BELOW, UnknownRoute, make_admin_routes
from adapters.frontdoor.served_request import FrontDesk
from adapters.frontdoor.server import ServerSettings, serve

logger = logging.getLogger(__name__)

SETTINGS = ServerSettings(
    drain_seconds=0,
    limits=ExchangeLimits(body_bytes=MAX_BODY, linger_bytes=MAX_BODY),
    encoded_slash_below=ADMIN_NAMES_BELOW,
    backlog=16,
)


def make_admin_app(desk: FrontDesk) -> ASGIApp:
    """The application behind the admin listener: its routes, health, and nothing else.

    Args:
        desk: What its requests share; with an access control made for this listener.
    """
    return RouteTable(
        make_admin_routes(desk, alone=True), redirect_slashes=False, default=UnknownRoute(desk)
    )


async def serve_admin(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until cancelled, and close the listener then.

    A failure is logged and passed over: who sends requests to the gateway must not suffer
    for it.
    """
    shutdown, hurry = anyio.Event(), anyio.Event()

    async def run() -> None:
        with anyio.CancelScope(shield=True):
            try:
                await serve(
                    app,
                    listener=listener,
                    settings=SETTINGS,
                    draining=Draining(),
                    shutdown=shutdown,
                    hurry=hurry,
                )
            except Exception as error:  # noqa: BLE001 - the border to the gateway's own listener
                logger.critical("the admin listener failed with %s", type(error).__name__)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        try:
            await anyio.sleep_forever()
        finally:
            # Cut short, not drained: whoever waits for a reload now waits in vain.
            hurry.set()
            shutdown.set()
