"""The adapter that brings its own upstream: a llama.cpp server for a GGUF file."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any, ClassVar, Final, Literal

import anyio
import httpx
from anyio import to_thread
from pydantic import BaseModel, Field

from adapters.providers.answer_reader import AnswerReader
from adapters.providers.demo_model import demo_settings
from adapters.providers.http import HttpAdapter
from adapters.providers.llamacpp_settings import LlamaCppSettings
from adapters.providers.llamacpp_sharing import ServerLease, share_server
from engine.attempt import Attempt
from engine.config import ConfigurationModel, ProviderConfig
from engine.errors import ConfigurationError, ConnectError
from engine.operations import Operation, Request

DEMO: Final = "demo"
"""The `model` that stands for the small real model of the extra `local`."""


class LlamaCppOptions(ConfigurationModel):
    """What a llama.cpp provider serves, and how. Providers with equal options share a server.

    Attributes:
        model: Path of a GGUF file, or `demo` for the small model that the extra `local` brings.
        context_tokens: Context of one request, prompt and answer together, tokens; None for
            4,096, with the demo model 2,048.
        parallel: Requests computed at the same time; more wait in the server.
        threads: CPU threads; None for the CPUs that this process may use, at most 16.
        embeddings: Serve embeddings as well.
        pooling: How an embedding is made of the tokens' vectors; None for what the file says,
            with the demo model `mean`.
        max_output_tokens: Longest answer when the request says nothing, tokens.
        alias: Model name in the answers; None for the file's name.
        start_timeout: How long loading the model may take, seconds.
    """

    model: Annotated[str, Field(min_length=1, max_length=4_096)] = DEMO
    context_tokens: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    parallel: Annotated[int, Field(ge=1, le=256)] = 2
    threads: Annotated[int, Field(ge=1, le=512)] | None = None
    embeddings: bool = False
    pooling: Literal["mean", "cls", "last"] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    alias: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    start_timeout: Annotated[float, Field(ge=0.1, le=3_600)] = 120.0


class LlamaCppAdapter(HttpAdapter):
    """Starts a llama.cpp server in a child process and speaks to it.

    The server starts with `start()`, or at the first call if nobody called that, and once
    more at the next call after its process died. The last provider that uses it stops it.
    """

    Options: ClassVar[type[BaseModel]] = LlamaCppOptions
    may_be_llamacpp: ClassVar[bool] = True

    def __init__(
        self, config: ProviderConfig, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Check the configuration; the model's file is not looked at before the start.

        Raises:
            ConfigurationError: If the options are wrong, or there is a `base_url`.
        """
        super().__init__(config, transport=transport)
        assert isinstance(self.options, LlamaCppOptions)
        self._settings = self.options
        if not self._settings.embeddings:
            # What a server can do depends on its options, so it is told per instance.
            self.operations = self.operations - {Operation.EMBEDDINGS}  # type: ignore[misc]
        self._server: ServerLease | None = None
        self._closed = False
        self._starting: anyio.Lock | None = None

    async def start(self) -> None:
        """Load the model and wait until it serves.

        Raises:
            ConfigurationError: If the package `xllamacpp` or the demo model's packages are
                not installed, or the file is no model that llama.cpp can load.
        """
        self._closed = False
        await super().start()
        await self._start_server()

    async def aclose(self) -> None:
        """Give the server back, which ends it if nobody else uses it."""
        self._closed = True
        server, self._server = self._server, None
        try:
            if server is not None:
                await server.release_in_thread()
        finally:
            await super().aclose()

    async def list_models(self) -> list[str]:
        """The one model that is served.

        Raises:
            ProviderError: If the server cannot be asked.
        """
        await self._need_server()
        return await super().list_models()

    async def _exchange(self, attempt: Attempt, request: Request, *, accept: str) -> AnswerReader:
        await self._need_server()
        return await super()._exchange(attempt, request, accept=accept)

    async def _need_server(self) -> None:
        server = self._server
        if server is not None and server.is_running:
            return
        if self._closed:
            raise ConnectError(f"provider {self.name!r} is closed", provider=self.name)
        try:
            await self._start_server()
        except (ConfigurationError, anyio.ClosedResourceError):
            failure = ConnectError(
                f"provider {self.name!r}: its llama.cpp server cannot be started",
                provider=self.name,
            )
        else:
            return
        raise failure

    async def _start_server(self) -> None:
        # Made here, not in the constructor: a lock belongs to the event loop that runs.
        self._starting = self._starting or anyio.Lock()
        async with self._starting:
            server = self._server
            if server is None:
                settings = await to_thread.run_sync(
                    _server_settings, self._settings, abandon_on_cancel=True
                )
                server = share_server(settings)
            elif server.is_running:
                return
            try:
                await server.start_in_thread()
            except BaseException:
                self._server = None
                await server.release_in_thread()
                raise
            self._server = server
            if self._closed:  # while it was loading
                await self.aclose()
                raise anyio.ClosedResourceError
            self._move_to(server.base_url)

    def _move_to(self, base_url: str) -> None:
        """Speak to a server that may listen on another port than the one before."""
        self.base_url = base_url
        self._prepared.clear()

    def _read_base_url(self) -> str:
        if self.config.base_url is not None:
            raise ConfigurationError(
                f"provider {self.name!r} of type {self.config.type!r} starts a server of its own: "
                "leave base_url out, or take the type openai_compatible for a server that runs"
            )
        return ""


def _server_settings(options: LlamaCppOptions) -> LlamaCppSettings:
    """What to tell the server; puts the demo model together, so it may take seconds."""
    chosen: dict[str, Any] = {
        name: value
        for name in ("context_tokens", "max_output_tokens", "alias", "pooling")
        if (value := getattr(options, name)) is not None
    }
    chosen |= {"embeddings": options.embeddings, "start_timeout": options.start_timeout}
    if options.model == DEMO:
        demo = demo_settings(parallel=options.parallel, threads=options.threads)
        return dataclasses.replace(demo, **{"pooling": "mean", **chosen})
    path = pathlib.Path(options.model).expanduser()
    return LlamaCppSettings(
        model_path=path, parallel=options.parallel, threads=options.threads, **chosen
    )
