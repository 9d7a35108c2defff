"""Lets several providers of one model share one llama.cpp server, counted by leases."""

from __future__ import annotations

import threading

import anyio
from anyio import to_thread

from adapters.providers.llamacpp_server import LlamaCppServer
from adapters.providers.llamacpp_settings import LlamaCppSettings


class ServerLease:
    """One holder's share of a server that others may hold as well; see `share_server`."""

    def __init__(self, pool: ServerPool, server: LlamaCppServer) -> None:
        """Made by `ServerPool.lease` only."""
        self.server = server
        self._pool = pool
        self._released = False
        self._lock = threading.Lock()

    @property
    def is_running(self) -> bool:
        """Whether the server is ready and its process lives."""
        return not self._released and self.server.is_running

    @property
    def base_url(self) -> str:
        """Where the API is; see `LlamaCppServer.base_url`.

        Raises:
            anyio.ClosedResourceError: If it has not been started, or the lease was released.
        """
        if self._released:
            raise anyio.ClosedResourceError
        return self.server.base_url

    def start(self) -> None:
        """Start the server unless it runs.

        Raises:
            ConfigurationError: As `LlamaCppServer.start`.
            anyio.ClosedResourceError: If the lease was released, before or meanwhile.
        """
        if self._released:
            raise anyio.ClosedResourceError
        self.server.start()

    def release(self) -> None:
        """Give the share back; the last one stops the server. Idempotent."""
        with self._lock:
            released, self._released = self._released, True
        if not released:
            self._pool.give_back(self.server)

    async def start_in_thread(self) -> None:
        """`start` for a task. When cancelled it returns at once; release the lease then.

        Raises:
            ConfigurationError: As `start`.
            anyio.ClosedResourceError: As `start`.
        """
        await to_thread.run_sync(self.start, abandon_on_cancel=True)

    async def release_in_thread(self) -> None:
        """`release` for a task; it is carried out even if the task is being cancelled."""
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(self.release)


class ServerPool:
    """Servers by their settings, counted by leases. Thread-safe."""

    def __init__(self) -> None:
        """Start with no server."""
        self._lock = threading.Lock()
        # As many entries as there are distinct settings in use: the last lease removes its.
        self._servers: dict[LlamaCppSettings, LlamaCppServer] = {}
        self._holders: dict[LlamaCppSettings, int] = {}

    def lease(self, settings: LlamaCppSettings) -> ServerLease:
        """Take a share of the server with these settings; nothing is started yet."""
        with self._lock:
            server = self._servers.setdefault(settings, LlamaCppServer(settings))
            self._holders[settings] = self._holders.get(settings, 0) + 1
        return ServerLease(self, server)

    def give_back(self, server: LlamaCppServer) -> None:
        """Take one holder off; with the last one the server stops."""
        settings = server.settings
        with self._lock:
            self._holders[settings] -= 1
            last = self._holders[settings] == 0
            if last:
                del self._holders[settings], self._servers[settings]
        if last:
            server.stop()


_shared_servers = ServerPool()


def share_server(settings: LlamaCppSettings) -> ServerLease:
    """Take a share of this process's server for `settings`; no I/O, nothing started.

    Two providers of one model are best served by one server: its slots are computed as one
    batch, and the model's working memory is there once.
    """
    return _shared_servers.lease(settings)
