"""What a server that knows its connections tells the front door about a request's client.

The seam between `adapters.frontdoor.http1_protocol`, which provides it, and
`adapters.frontdoor.receiver`, which uses it when it is there.
"""

from collections.abc import Callable
from typing import Final, Protocol

CLIENT_STATE_KEY: Final = "frontdoor.client"
"""Under this name a server puts a `ClientConnection` into ``scope["state"]``."""


class ClientConnection(Protocol):
    """The connection that a request came on.

    A server that offers it promises that its ASGI ``receive`` holds no cancel scope while it waits.

    Attributes:
        on_gone: called once, from the event loop, when the client has left while its request is
            being served. One request at a time uses a connection, so one callback is enough.
        gone: whether the client has left; it may have before there was anybody to call.
    """

    on_gone: Callable[[], None] | None
    gone: bool

    def abort(self) -> None:
        """Close the connection now and throw away what has not been sent."""
