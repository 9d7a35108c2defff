"""Hypercorn alone, with an app that only answers: the part of the cost that is the server's.

Run as a process of its own: `python -m benchmarks.bare_server`. It prints the port it listens on
and ends when its standard input is closed.
"""

from __future__ import annotations

# Hypercorn is run through its asyncio API on uvloop, as the gateway runs it.
import asyncio
import os
import socket
import sys
from typing import Any, cast

import hypercorn.asyncio
import uvloop
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework

from benchmarks.wire import ANSWER

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(ANSWER)),
    ],
}
_BODY = {"type": "http.response.body", "body": ANSWER}


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Read the request, answer it with the upstream's answer."""
    if scope["type"] != "http":
        # Servers go on without a lifespan when an app says that it has none.
        raise NotImplementedError(scope["type"])
    while (await receive()).get("more_body"):
        pass
    await send(_START)
    await send(_BODY)


async def serve() -> None:
    """Serve until standard input is closed."""
    closed = asyncio.Event()

    def read_input() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            closed.set()

    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        config = Config()
        config.bind = [f"fd://{listener.fileno()}"]
        config.accesslog = config.errorlog = None
        config.include_server_header = False
        config.keep_alive_max_requests = 2**31
        config.keep_alive_timeout = 75
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), read_input)
        print(listener.getsockname()[1], flush=True)
        await hypercorn.asyncio.serve(
            cast("ASGIFramework", answer), config, shutdown_trigger=closed.wait, mode="asgi"
        )


if __name__ == "__main__":
    uvloop.run(serve())
