"""Running the gateway as the work of this process; what `serve` and `demo` share."""

from __future__ import annotations

import shlex
import socket
import threading
from collections.abc import Callable

import click

from adapters.cli.failure import Failure
from adapters.frontdoor.app import create_app
from adapters.frontdoor.lifespan import StartupError
from adapters.frontdoor.listening_socket import ListenError, open_listening_socket
from adapters.frontdoor.server import run_server
from adapters.observability import RequestLog, start_observability
from engine.config import GatewayConfig
from engine.errors import ConfigurationError, GatewayError

_SHOWN = 10

_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


def with_address(config: GatewayConfig, host: str | None, port: int | None) -> GatewayConfig:
    """The configuration with host and port of the command line, where they are given."""
    given = {"host": host, "port": port}
    update = {name: value for name, value in given.items() if value is not None}
    server = config.server.model_copy(update=update)
    return config.model_copy(update={"server": server})


def run_gateway(config: GatewayConfig, on_started: Callable[[str], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, and say on stderr where and what.

    Args:
        config: What to serve.
        on_started: Called with the gateway's URL once it answers, in a thread of its own.

    Returns:
        The exit code.

    Raises:
        Failure: If the port is busy, or a provider or telemetry cannot start.
    """
    try:
        listener = open_listening_socket(config.server.host, config.server.port)
    except ListenError as error:
        raise Failure(str(error)) from None
    url = _url(config.server.host, listener.getsockname()[1])

    def announce() -> None:
        # A thread, because a stderr that nobody reads must not stop the event loop.
        threading.Thread(target=_announce, args=(config, url, on_started), daemon=True).start()

    with listener:
        try:
            return _serve(config, listener, announce)
        except (ConfigurationError, StartupError, ExceptionGroup) as error:
            if (words := _startup_words(error)) is None:
                raise
        raise Failure(words)


def _startup_words(error: Exception) -> str | None:
    """What kept the gateway from starting, if that is what an exception says."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        # Task groups of the server may stand around it.
        error = error.exceptions[0]
    if isinstance(error, StartupError) and isinstance(error.__cause__, GatewayError):
        return error.__cause__.message
    if isinstance(error, ConfigurationError):
        return error.message
    return str(error) if isinstance(error, StartupError) else None


def _serve(config: GatewayConfig, listener: socket.socket, announce: Callable[[], None]) -> int:
    request_log = RequestLog(config.telemetry.logs)
    observability = start_observability(config.telemetry)
    try:
        app = create_app(config, request_log=request_log)
        return run_server(
            app,
            listener=listener,
            settings=app.settings,
            draining=app.draining,
            on_started=announce,
        )
    finally:
        # Each is bounded: neither a terminal nor a collector holds up the end.
        request_log.close()
        observability.shutdown()


def _url(host: str, port: int) -> str:
    """Where a client on this machine finds it."""
    if host in _EVERYWHERE:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(config: GatewayConfig, url: str, on_started: Callable[[str], None] | None) -> None:
    for line in announcement(config, url):
        click.echo(line, err=True)
    if on_started is not None:
        on_started(url)


def announcement(config: GatewayConfig, url: str) -> list[str]:
    """What is said at the start: where it listens, what it serves, and how to try it."""
    enabled = [
        f"{provider.name} ({provider.type}, weight {provider.weight:g})"
        for provider in config.providers
        if provider.enabled
    ]
    models = [model.name for model in config.models]
    return [
        f"listening on {url}",
        f"providers: {_some(enabled)}",
        f"models: {_some(models) if models else 'every name'}",
        f"try: {curl_line(config, url)}",
    ]


def curl_line(config: GatewayConfig, url: str) -> str:
    """A command that asks the gateway something."""
    model = config.models[0].name if config.models else "default"
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    words = ["curl", f"{url}/v1/chat/completions", "-H", "content-type: application/json"]
    if config.server.api_keys_env is not None:
        words += ["-H", "authorization: Bearer YOUR-KEY"]
    return shlex.join([*words, "-d", body])


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
