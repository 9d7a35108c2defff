"""Running the gateway as the work of this process; what `serve` and `demo` share."""

from __future__ import annotations

import logging
import shlex
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import anyio
import click

from adapters.cli.failure import Failure
from adapters.cli.hang_up import on_hang_up
from adapters.configuration.reloading import ConfigurationReload
from adapters.configuration.watching import FileWatch, digest_of
from adapters.frontdoor.admin_server import serve_admin
from adapters.frontdoor.app import create_app, make_router
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.lifespan import StartupError
from adapters.frontdoor.listening_socket import ListenError, open_listening_socket
from adapters.frontdoor.server import run_server
from adapters.observability import RequestLog, start_observability
from engine.config import GatewayConfig
from engine.configuration_change import ConfigurationChange
from engine.errors import ConfigurationError, GatewayError, RouterClosedError
from engine.router import Router

_SHOWN = 10

_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


def with_address(config: GatewayConfig, host: str | None, port: int | None) -> GatewayConfig:
    """The configuration with host and port of the command line, where they are given."""
    given = {"host": host, "port": port}
    update = {name: value for name, value in given.items() if value is not None}
    server = config.server.model_copy(update=update)
    return config.model_copy(update={"server": server})


@dataclass(frozen=True, slots=True)
class ConfigurationSource:
    """The file that a gateway was started with, so that it can be read again.

    Attributes:
        path: The file.
        adjust: Does to its contents what the command line did at the start.
        digest: Digest of the file from before it was read.
    """

    path: str
    adjust: Callable[[GatewayConfig], GatewayConfig]
    digest: bytes | None

    @classmethod
    def before_reading(
        cls, path: str, adjust: Callable[[GatewayConfig], GatewayConfig]
    ) -> ConfigurationSource:
        """Note what the file is like now; call it before the file is read."""
        return cls(path, adjust, digest_of(path))


@dataclass(frozen=True, slots=True)
class Listeners:
    """The open sockets of a gateway.

    Attributes:
        main: Where requests come in.
        admin: Where the operator comes in; None without a listener of its own.
    """

    main: socket.socket
    admin: socket.socket | None


def run_gateway(
    config: GatewayConfig,
    on_started: Callable[[str], None] | None = None,
    *,
    source: ConfigurationSource | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, and say on stderr where and what.

    The caller ends the process with the exit code: from the signal on, a watchdog would
    otherwise do so.

    Args:
        config: What to serve.
        on_started: Called with the gateway's URL once it answers, in a thread of its own.
        source: The file to read again on SIGHUP and when it changes; None for no file.

    Returns:
        The exit code.

    Raises:
        Failure: If a port is busy, or a provider or telemetry cannot start.
    """
    with ExitStack() as stack:
        listeners = _open_listeners(config, stack)
        url = _url(config.server.host, listeners.main)

        def announce() -> None:
            # A thread, because a stderr that nobody reads must not stop the event loop.
            lines = announcement(config, url)
            if listeners.admin is not None:
                lines.insert(1, f"admin on {_url(config.server.admin_host, listeners.admin)}")
            threading.Thread(target=_announce, args=(lines, url, on_started), daemon=True).start()

        try:
            return _serve(config, listeners, announce, source)
        except (ConfigurationError, StartupError, ExceptionGroup) as error:
            if (words := _startup_words(error)) is None:
                raise
        raise Failure(words)


def _open_listeners(config: GatewayConfig, stack: ExitStack) -> Listeners:
    server, admin = config.server, None
    try:
        main = stack.enter_context(open_listening_socket(server.host, server.port))
        if server.admin_port is not None:
            admin = stack.enter_context(open_listening_socket(server.admin_host, server.admin_port))
    except ListenError as error:
        raise Failure(str(error)) from None
    return Listeners(main, admin)


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


def _serve(
    config: GatewayConfig,
    listeners: Listeners,
    announce: Callable[[], None],
    source: ConfigurationSource | None,
) -> int:
    request_log = RequestLog(config.telemetry.logs)
    observability = start_observability(config.telemetry)
    # Reloads and the steps of a drain are told, though nothing is wrong with them.
    logging.getLogger("adapters").setLevel(logging.INFO)
    try:
        router, draining = make_router(config), Draining()
        reloading = None if source is None else _reload_of(source, config, router, draining)
        app = create_app(
            config, router=router, request_log=request_log, draining=draining, reloading=reloading
        )

        async def beside() -> None:
            async with anyio.create_task_group() as group:
                if listeners.admin is not None and app.admin is not None:
                    group.start_soon(serve_admin, app.admin, listeners.admin)
                if source is not None and reloading is not None:
                    group.start_soon(on_hang_up, lambda: reloading.try_reload("SIGHUP"))
                    if config.server.watch:
                        group.start_soon(_watch_of(source, reloading).run)

        return run_server(
            app,
            listener=listeners.main,
            settings=app.settings,
            draining=draining,
            on_started=announce,
            beside=beside,
            ends_process=True,
        )
    finally:
        # Each is bounded: neither a terminal nor a collector holds up the end.
        request_log.close()
        observability.shutdown()


def _reload_of(
    source: ConfigurationSource, config: GatewayConfig, router: Router, draining: Draining
) -> ConfigurationReload:
    async def apply(new: GatewayConfig) -> ConfigurationChange:
        if draining.is_set():
            msg = "the gateway is shutting down: its configuration stays as it is"
            raise RouterClosedError(msg)
        change = await router.reload(new)
        draining.drain_seconds = new.server.drain
        return change

    return ConfigurationReload(source.path, started_with=config, apply=apply, adjust=source.adjust)


def _watch_of(source: ConfigurationSource, reloading: ConfigurationReload) -> FileWatch:
    return FileWatch(source.path, lambda: reloading.try_reload("file changed"), read=source.digest)


def _url(host: str, listener: socket.socket) -> str:
    """Where a client on this machine finds it."""
    port = listener.getsockname()[1]
    if host in _EVERYWHERE:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(lines: list[str], url: str, on_started: Callable[[str], None] | None) -> None:
    for line in lines:
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
