"""Which models can be asked for when none are configured: every provider is asked."""

from collections.abc import Callable

import anyio
import pytest
from scripted import ScriptedProvider

from engine import ConnectError, GatewayConfig, ModelEntry
from engine.model_catalogue import KEPT_FOR, LARGEST, ModelCatalogue


def catalogue(*providers: ScriptedProvider) -> ModelCatalogue:
    """A catalogue of these providers, without configured models."""
    config = GatewayConfig(providers=tuple(provider.config for provider in providers))
    return ModelCatalogue(config, {provider.name: provider for provider in providers})


def serving(name: str, *models: str) -> ScriptedProvider:
    """A provider that serves these models."""
    provider = ScriptedProvider(name)
    provider.models = list(models)
    return provider


async def test_models_of_all_providers_are_joined() -> None:
    """Each model stands once, with all who serve it, in the providers' order."""
    found = await catalogue(serving("a", "x", "y"), serving("b", "y", "z")).list_models()
    assert found == [
        ModelEntry("x", ("a",)), ModelEntry("y", ("a", "b")), ModelEntry("z", ("b",)),
    ]  # fmt: skip


@pytest.mark.parametrize("failure", [ConnectError("down"), ValueError("bug")])
async def test_provider_that_cannot_say_is_left_out(failure: Exception) -> None:
    """A failing provider, or a buggy adapter, does not spoil the list."""
    bad = ScriptedProvider("bad")
    bad.models = failure
    assert await catalogue(bad, serving("a", "x")).list_models() == [ModelEntry("x", ("a",))]


def test_answer_is_kept_for_a_while(virtual_time: Callable[..., None]) -> None:
    """Providers are asked once a minute at most; after that the list is fresh."""

    async def main() -> None:
        provider = serving("a", "x")
        made = catalogue(provider)
        for _ in range(5):
            await made.list_models()
        assert provider.asked_for_models == 1
        provider.models = ["y"]
        await anyio.sleep(KEPT_FOR + 1)
        assert await made.list_models() == [ModelEntry("y", ("a",))]

    virtual_time(main)


def test_old_answer_is_better_than_none(virtual_time: Callable[..., None]) -> None:
    """When nobody can say any more, the last list stands."""

    async def main() -> None:
        provider = serving("a", "x")
        made = catalogue(provider)
        await made.list_models()
        provider.models = ConnectError("down")
        await anyio.sleep(KEPT_FOR + 1)
        assert await made.list_models() == [ModelEntry("x", ("a",))]

    virtual_time(main)


def test_slow_provider_is_not_waited_for(virtual_time: Callable[..., None]) -> None:
    """A provider that does not answer costs five seconds, not the list."""

    class Slow(ScriptedProvider):
        async def list_models(self) -> list[str]:
            await anyio.sleep_forever()
            return []

    async def main() -> None:
        start = anyio.current_time()
        assert await catalogue(Slow("slow"), serving("a", "x")).list_models() == [
            ModelEntry("x", ("a",))
        ]
        assert anyio.current_time() - start == pytest.approx(5)

    virtual_time(main)


async def test_list_is_bounded() -> None:
    """A provider with endless models cannot fill the memory."""
    endless = serving("a", *(str(number) for number in range(LARGEST + 50)))
    assert len(await catalogue(endless, serving("b", "0", "extra")).list_models()) == LARGEST
