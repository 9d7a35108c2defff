"""The public API as an application writes it; never run, only type-checked."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, assert_type

from engine import (
    AnswerStream,
    Attempt,
    BaseProvider,
    ChatRequest,
    ChatResponse,
    Chunk,
    ChunkSource,
    CompletionRequest,
    EmbeddingRequest,
    GatewayConfig,
    GatewayError,
    ModelEntry,
    NoProviderAvailableError,
    Operation,
    ProviderConfig,
    ProviderError,
    ProviderFactory,
    ProviderRegistry,
    Replay,
    Request,
    Response,
    Router,
    RouterStatus,
    Usage,
)


async def as_a_library(configuration: Mapping[str, Any]) -> None:
    """Ask a router, streamed and not."""
    async with Router.from_config(configuration) as router:
        assert_type(router, Router)
        response = await router.complete({"model": "chat", "messages": []}, timeout=3)
        assert_type(response, Response)
        assert_type(response.text, str)
        assert_type(response.usage, Usage | None)
        assert_type(response.attempts, int)
        await router.complete(ChatRequest("chat", [{"role": "user", "content": "hi"}], seed=1))
        await router.complete(CompletionRequest("chat", prompt="once"), request_id="my-id")
        await router.embed(EmbeddingRequest("embed", input=["a"]))
        async with router.stream({"model": "chat", "messages": []}) as stream:
            assert_type(stream, AnswerStream)
            async for chunk in stream:
                assert_type(chunk, Chunk)
                assert_type(chunk.text, str)
        assert_type(router.status(), RouterStatus)
        assert_type(await router.list_models(), list[ModelEntry])
        assert_type(await router.drain(5), bool)
        assert_type(router.ready, bool)


async def errors(router: Router) -> Replay | dict[str, str] | int:
    """Tell failures apart."""
    try:
        await router.complete({"model": "chat", "messages": []})
    except NoProviderAvailableError as error:
        return error.passed_over
    except ProviderError as error:
        return error.replay
    except GatewayError as error:
        return error.status
    return 0


async def without_a_router() -> ChatResponse:
    """Make one provider and call it."""
    config = ProviderConfig(name="main", type="openai", api_key_env="OPENAI_API_KEY", weight=2)
    provider = ProviderFactory.create_provider(config)
    assert_type(provider, BaseProvider)
    registry = ProviderRegistry()
    registry.register_provider(config.name, provider)
    gateway = GatewayConfig(providers=(config,), balancer="least_loaded", seed=4)
    Router(gateway, registry=registry)
    async with provider:
        return await provider.chat_completion({"model": "m", "messages": []}, "req-123")


class Echo(BaseProvider):
    """An adapter of an application's own."""

    operations = frozenset({Operation.CHAT})

    async def send(self, attempt: Attempt) -> Response:
        """Answer with the request."""
        request: Request = attempt.request
        return Response({"model": attempt.model, "echo": dict(request.body)})

    def stream(self, attempt: Attempt) -> ChunkSource:
        """An async generator is a source of chunks."""
        return self._chunks(attempt)

    async def _chunks(self, attempt: Attempt) -> AsyncGenerator[Chunk, None]:
        yield Chunk(attempt.request_id.encode(), commits=True)


def register() -> None:
    """Make the type known."""
    ProviderFactory.register_type("echo", Echo)
