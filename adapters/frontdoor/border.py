"""The border: every request becomes an exchange, is counted, and is refused once we drain."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.frontdoor.body_limits import ExchangeLimits
from adapters.frontdoor.drain import SERVER_DRAINING, Draining
from adapters.frontdoor.receiver import Exchange

_EXCHANGE_KEY: Final = "frontdoor.exchange"


class ExchangeBorder:
    """ASGI middleware that makes every request an `Exchange`, counts it, and refuses in a drain."""

    __slots__ = ("_app", "_draining", "_limits")

    def __init__(self, app: ASGIApp, *, limits: ExchangeLimits, draining: Draining) -> None:
        """Wrap an app.

        Args:
            app: what is behind the border, framing gate included, so that a refusal's unread body
                is taken care of too.
            limits: what one request may take.
            draining: where requests are counted and the end is announced.
        """
        self._app = app
        self._limits = limits
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request as an exchange; other scopes pass unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        draining = self._draining
        exchange = Exchange(scope, receive, send, limits=self._limits, draining=draining)
        scope[_EXCHANGE_KEY] = exchange
        draining.enter(exchange)
        try:
            if draining.refuses(scope["path"]):
                await exchange.serve(_refuse_draining)
            else:
                await exchange.serve(self._app)
        finally:
            draining.leave(exchange)


def exchange_of(scope: Scope) -> Exchange:
    """Give the exchange of a request.

    Args:
        scope: the request's ASGI scope, behind an `ExchangeBorder`.

    Raises:
        RuntimeError: there is no `ExchangeBorder` around the app.
    """
    exchange = scope.get(_EXCHANGE_KEY)
    if not isinstance(exchange, Exchange):
        message = "no exchange in this scope: wrap the app in an ExchangeBorder"
        raise RuntimeError(message)  # noqa: TRY004 - a mistake in the set-up, not a wrong type
    return exchange


async def _refuse_draining(_scope: Scope, _receive: Receive, send: Send) -> None:
    await SERVER_DRAINING.answer(send)
