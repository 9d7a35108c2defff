"""The port on its own: a provider without a router."""

from collections.abc import Callable

import anyio
import pytest
from scripted import CHAT, ChatOnlyProvider, Hang, Ok, ScriptedProvider

from engine import (
    ChatRequest,
    ConnectError,
    EmbeddingRequest,
    InvalidRequestError,
    Operation,
    SilentError,
    UnsupportedOperationError,
)


@pytest.mark.parametrize("request_body", [CHAT, ChatRequest.from_body(CHAT)], ids=["map", "object"])
async def test_chat_completion_needs_no_router(request_body: dict[str, object]) -> None:
    """One call, with its id, for a mapping or a request."""
    provider = ScriptedProvider("a")
    response = await provider.chat_completion(request_body, "req-123")
    assert (response.text, response.provider, response.request_id) == ("hello", "a", "req-123")
    assert provider.calls[0].attempt.request_id == "req-123"


async def test_failure_goes_to_the_caller_without_a_repeat() -> None:
    """Without a router there is one attempt."""
    provider = ScriptedProvider("a", ConnectError)
    with pytest.raises(ConnectError):
        await provider.chat_completion(CHAT, "req-123")
    assert len(provider.calls) == 1


async def test_wrong_body_is_the_callers_mistake() -> None:
    """The body is checked before anything is sent."""
    provider = ScriptedProvider("a")
    with pytest.raises(InvalidRequestError):
        await provider.chat_completion({"model": "m"}, "req-123")
    assert provider.calls == []


async def test_other_operations_by_call() -> None:
    """`call` makes any operation that the provider offers."""
    body = {"model": "m", "input": "x"}
    await ScriptedProvider("a").call(Operation.EMBEDDINGS, body, "req-1")
    with pytest.raises(UnsupportedOperationError, match="embeddings"):
        await ChatOnlyProvider("a").call(Operation.EMBEDDINGS, body, "req-1")
    with pytest.raises(UnsupportedOperationError):
        await ChatOnlyProvider("a").call(Operation.CHAT, EmbeddingRequest("m", input="x"), "r")


def test_call_is_bounded_by_the_timeout(virtual_time: Callable[..., None]) -> None:
    """A silent upstream costs `timeout` seconds."""

    async def main() -> None:
        provider = ScriptedProvider("a", Hang(), Ok(after=4.9), timeout=5)
        start = anyio.current_time()
        with pytest.raises(SilentError, match="within 5 s"):
            await provider.chat_completion(CHAT, "req-123")
        assert anyio.current_time() - start == pytest.approx(5)
        assert provider.outcomes == ["cancelled"]
        await provider.chat_completion(CHAT, "req-124")

    virtual_time(main)


async def test_context_manager_starts_and_closes() -> None:
    """`async with` is the whole life of a provider."""
    async with ScriptedProvider("a") as provider:
        assert (provider.started, provider.closed) == (1, 0)
    assert provider.closed == 1


async def test_listing_models_may_be_unsupported() -> None:
    """A type without such a call says so by name."""

    class Plain(ScriptedProvider):
        list_models = ScriptedProvider.__mro__[1].list_models  # type: ignore[attr-defined]

    with pytest.raises(UnsupportedOperationError, match="'mock'"):
        await Plain("a").list_models()


def test_repr_names_the_provider() -> None:
    """A repr tells name and type, and nothing that could be secret."""
    provider = ScriptedProvider("a", api_key_env="SECRET_KEY", base_url="http://u:p@host")
    assert repr(provider) == "ScriptedProvider(name='a', type='mock')"
