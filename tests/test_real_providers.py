"""Providers as applications make and use them: factory, registry, injection."""

from __future__ import annotations

import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from adapters.providers.mock import MockAdapter, MockOpenAIAdapter, MockVLLMAdapter
from adapters.providers.openai import OpenAIAdapter
from adapters.providers.openai_compatible import OpenAICompatibleAdapter
from adapters.providers.vllm import VLLMAdapter
from engine.attempt import Attempt
from engine.config import EjectionConfig, LimitsConfig, ProviderConfig, TimeoutsConfig
from engine.errors import ConfigurationError
from engine.factory import ProviderFactory
from engine.operations import ChatRequest, Chunk, Operation, Response
from engine.provider import BaseProvider, ChunkSource
from engine.registry import ProviderRegistry

URL = "http://127.0.0.1:8000/v1"


class EchoSource:
    """A stream of one chunk."""

    def __init__(self) -> None:
        self.left = [Chunk(b'{"choices":[]}')]

    def __aiter__(self) -> EchoSource:
        return self

    async def __anext__(self) -> Chunk:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()

    async def aclose(self) -> None:
        self.left.clear()


class EchoProvider(BaseProvider):
    """An adapter that somebody else wrote."""

    operations = frozenset({Operation.CHAT})

    async def send(self, attempt: Attempt) -> Response:
        return Response({"echo": attempt.request.body["messages"]})

    def stream(self, attempt: Attempt) -> ChunkSource:
        return EchoSource()


@pytest.fixture(autouse=True)
def key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that OpenAI's adapter looks for."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.delenv("UNSET_KEY", raising=False)


@pytest.fixture
def fresh_factory() -> Iterator[None]:
    """Types made known in a test are forgotten after it."""
    yield
    for name in ("echo", "echo_installed"):
        ProviderFactory.unregister_type(name)
    ProviderFactory.forget_entry_points()


def config(type_name: str, **changes: Any) -> ProviderConfig:
    return ProviderConfig(**{"name": f"my-{type_name}", "type": type_name, **changes})


class TestProviderFactory:
    """Every promise of the factory to applications."""

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            (config("openai"), OpenAIAdapter),
            (config("openai", base_url=URL, api_key_env="OPENAI_API_KEY"), OpenAIAdapter),
            (config("vllm", base_url=URL), VLLMAdapter),
            (config("openai_compatible", base_url=URL), OpenAICompatibleAdapter),
            (config("mock"), MockOpenAIAdapter),
            (config("mock", base_url="http://vllm.local/v1"), MockVLLMAdapter),
            (config("mock", name="my-vllm-mock"), MockVLLMAdapter),
            (config("mock", options={"imitates": "vllm"}), MockVLLMAdapter),
            (config("mock", options={"imitates": "openai"}), MockOpenAIAdapter),
        ],
    )
    def test_creates_the_class_of_the_type(
        self, given: ProviderConfig, wanted: type[BaseProvider]
    ) -> None:
        """The type, and for mocks what they imitate, choose the class."""
        provider = ProviderFactory.create_provider(given)
        assert type(provider) is wanted
        assert isinstance(provider, BaseProvider)
        assert provider.config is given
        assert provider.name == given.name

    def test_mocks_are_the_real_adapters(self) -> None:
        """So they cannot drift apart."""
        assert issubclass(MockOpenAIAdapter, OpenAIAdapter)
        assert issubclass(MockVLLMAdapter, VLLMAdapter)
        assert issubclass(MockAdapter, BaseProvider)

    def test_the_configuration_has_its_defaults(self) -> None:
        """All of them, as applications know them."""
        given = ProviderConfig(name="p", type="openai")
        assert given.model_dump() == {
            "name": "p",
            "type": "openai",
            "base_url": None,
            "api_key_env": None,
            "timeout": 30.0,
            "max_retries": 3,
            "weight": 1.0,
            "enabled": True,
            "timeouts": TimeoutsConfig().model_dump(),
            "limits": LimitsConfig().model_dump(),
            "ejection": EjectionConfig().model_dump(),
            "health_check": None,
            "options": {},
        }

    def test_openai_has_a_default_url(self) -> None:
        """Only the key must be there."""
        provider = ProviderFactory.create_provider(config("openai"))
        assert isinstance(provider, OpenAIAdapter)
        assert provider.base_url == "https://api.openai.com/v1"

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (config("opnai"), r"unknown provider type 'opnai'.*did you mean 'openai'.*known types"),
            (config("openai", api_key_env="UNSET_KEY"), r"'my-openai'.*needs.*export UNSET_KEY="),
            (config("vllm", base_url=URL, api_key_env="UNSET_KEY"), r"export UNSET_KEY="),
            (config("vllm"), r"'my-vllm'.*needs a base_url.*http://127.0.0.1:8000/v1"),
            (config("openai_compatible"), r"needs a base_url"),
            (config("vllm", base_url="127.0.0.1:8000"), r"must begin with http"),
            (config("vllm", base_url=URL, options={"x": 1}), r"options\.x"),
        ],
    )
    def test_says_what_to_do(self, given: ProviderConfig, words: str) -> None:
        """An unknown type, a missing key, a missing or wrong URL: a ValueError with words."""
        with pytest.raises(ValueError, match=words) as caught:
            ProviderFactory.create_provider(given)
        assert isinstance(caught.value, ConfigurationError)

    def test_an_empty_key_is_a_missing_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An empty variable helps nobody."""
        monkeypatch.setenv("OPENAI_API_KEY", " ")
        with pytest.raises(ValueError, match="export OPENAI_API_KEY="):
            ProviderFactory.create_provider(config("openai"))

    def test_the_registry_holds_providers_by_name(self) -> None:
        """One name, one provider."""
        registry = ProviderRegistry()
        provider = ProviderFactory.create_provider(config("mock"))
        registry.register_provider(provider.config.name, provider)
        assert registry.get_provider("my-mock") is provider
        with pytest.raises(ConfigurationError, match="'my-mock' is registered already"):
            registry.register_provider("my-mock", ProviderFactory.create_provider(config("mock")))

    async def test_a_provider_works_alone(self) -> None:
        """No router, no actor: one call, with the id that was given."""
        provider = ProviderFactory.create_provider(config("mock"))
        request = ChatRequest(model="m", messages=[{"role": "user", "content": "Hello"}])
        response = await provider.chat_completion(request, "req-123")
        assert response.text
        assert response.request_id == "req-123"
        assert response.provider == "my-mock"

    async def test_a_plain_mapping_is_a_request(self) -> None:
        """Applications may pass the JSON object itself."""
        provider = ProviderFactory.create_provider(config("mock"))
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        assert (await provider.chat_completion(body, "req-123")).text

    async def test_fastapi_injects_a_provider(
        self, anyio_backend: tuple[str, dict[str, Any]]
    ) -> None:
        """`Depends` on the registry's provider, and an endpoint that calls it."""
        registry = ProviderRegistry()
        registry.register_provider("main", ProviderFactory.create_provider(config("mock")))
        app = FastAPI()

        def main_provider() -> BaseProvider:
            return registry.get_provider("main")

        async def ask(
            question: str, provider: Annotated[BaseProvider, Depends(main_provider)]
        ) -> dict[str, Any]:
            messages = [{"role": "user", "content": question}]
            request = ChatRequest(model="m", messages=messages)
            return (await provider.chat_completion(request, "req-123")).body

        # FastAPI reads annotations as texts in the module, where the functions above are not.
        ask.__annotations__["provider"] = Annotated[BaseProvider, Depends(main_provider)]
        app.get("/ask")(ask)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            answer = await client.get("/ask", params={"question": "Hello"})
        assert answer.status_code == 200
        assert answer.json()["object"] == "chat.completion"

    def test_many_threads_may_create_at_once(self) -> None:
        """Also the first time, when the type is not loaded yet."""
        ProviderFactory.forget_entry_points()
        start = threading.Barrier(16)
        made: list[BaseProvider] = []
        failures: list[BaseException] = []

        def create(number: int) -> None:
            try:
                start.wait()
                for step in range(50):
                    kind = ("openai", "mock", "vllm")[(number + step) % 3]
                    given = config(kind, name=f"{kind}-{number}-{step}", base_url=URL)
                    made.append(ProviderFactory.create_provider(given))
            except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len({provider.name for provider in made}) == 16 * 50

    @pytest.mark.usefixtures("fresh_factory")
    async def test_a_type_can_be_registered(self) -> None:
        """A class of the application's own serves under its own name, once."""
        ProviderFactory.register_type("echo", EchoProvider)
        assert "echo" in ProviderFactory.known_types()
        provider = ProviderFactory.create_provider(config("echo"))
        assert type(provider) is EchoProvider
        answer = await provider.chat_completion(ChatRequest("m", [{"role": "user"}]), "r")
        assert answer["echo"] == [{"role": "user"}]
        with pytest.raises(ConfigurationError, match="'echo' is taken"):
            ProviderFactory.register_type("echo", EchoProvider)

    def test_the_names_of_installed_types_are_taken(self) -> None:
        """Nobody replaces `openai` by accident."""
        with pytest.raises(ConfigurationError, match="'openai' is taken"):
            ProviderFactory.register_type("openai", EchoProvider)

    def test_only_providers_can_be_registered(self) -> None:
        """Something else is refused when it is registered, not when it is used."""
        wrong: Any = dict
        with pytest.raises(ConfigurationError, match="BaseProvider"):
            ProviderFactory.register_type("echo", wrong)

    @pytest.mark.usefixtures("fresh_factory")
    def test_an_installed_package_brings_its_type(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An entry point is enough: no line of ours knows the type."""
        install(tmp_path, "echo_installed", "echo_package:EchoProvider")
        (tmp_path / "echo_package.py").write_text("from __main__ import EchoProvider\n")
        monkeypatch.setattr(sys.modules["__main__"], "EchoProvider", EchoProvider, raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
        ProviderFactory.forget_entry_points()
        assert "echo_installed" in ProviderFactory.known_types()
        assert type(ProviderFactory.create_provider(config("echo_installed"))) is EchoProvider

    @pytest.mark.usefixtures("fresh_factory")
    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("no_such_module:X", "cannot be loaded"),
            ("json:no_such_name", "cannot be loaded"),
            ("json:JSONDecoder", "must be a subclass of engine.BaseProvider"),
        ],
    )
    def test_a_broken_package_is_named(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str
    ) -> None:
        """A type that cannot be loaded says so, and the others work on."""
        install(tmp_path, "echo_installed", target)
        monkeypatch.syspath_prepend(str(tmp_path))
        ProviderFactory.forget_entry_points()
        with pytest.raises(ConfigurationError, match=words):
            ProviderFactory.create_provider(config("echo_installed"))
        assert ProviderFactory.create_provider(config("mock")).name == "my-mock"

    async def test_providers_share_what_is_costly(self) -> None:
        """Two configurations have one transport: its TLS context, connections and tasks."""
        one = ProviderFactory.create_provider(config("openai"))
        two = ProviderFactory.create_provider(config("vllm", base_url=URL))
        assert isinstance(one, OpenAIAdapter)
        assert isinstance(two, VLLMAdapter)
        assert one.transport is two.transport
        await one.aclose()
        await two.aclose()

    async def test_closing_twice_and_using_again_is_harmless(self) -> None:
        """A provider that was closed takes a new share when it is used again."""
        provider = ProviderFactory.create_provider(config("vllm", base_url=URL))
        assert isinstance(provider, VLLMAdapter)
        await provider.aclose()
        first = provider.transport
        await provider.aclose()
        await provider.aclose()
        assert provider.transport is first
        await provider.aclose()


def install(folder: pathlib.Path, type_name: str, target: str) -> None:
    """Write what installing a package with an entry point writes."""
    metadata = folder / "echo_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[inference_gateway.providers]\n{type_name} = {target}\n"
    )
