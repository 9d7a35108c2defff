"""Providers without a network: the real adapters on a scripted transport.

Because they are the real adapters, what a mock's fault becomes in the engine is what the
real one becomes.
"""

from __future__ import annotations

from typing import ClassVar, Self, cast

from pydantic import BaseModel

from adapters.providers.http import HttpAdapter
from adapters.providers.mock_answers import Dialect
from adapters.providers.mock_options import MockOptions
from adapters.providers.mock_transport import ScriptedTransport
from adapters.providers.openai import OpenAIAdapter
from adapters.providers.vllm import VLLMAdapter
from engine.config import ProviderConfig


class MockAdapter(HttpAdapter):
    """A provider whose answers, speed and faults are set in its `options`.

    Making one gives a `MockVLLMAdapter` if the configuration points at vLLM
    (`options.imitates`, or "vllm" in `base_url` or `name`), else a `MockOpenAIAdapter`.
    Neither needs a key or a URL.

    Attributes:
        dialect: Whose answers it imitates.
    """

    Options: ClassVar[type[BaseModel]] = MockOptions
    default_base_url: ClassVar[str | None] = "http://mock.invalid/v1"
    default_key_env: ClassVar[str | None] = None
    key_required: ClassVar[bool] = False
    dialect: ClassVar[Dialect] = "openai"

    def __new__(cls, config: ProviderConfig) -> Self:
        """Choose the class of the mock.

        Args:
            config: Whose `options`, `base_url` and `name` are looked at.
        """
        chosen: type[MockAdapter] = cls
        if cls is MockAdapter:
            chosen = MockVLLMAdapter if _points_at_vllm(config) else MockOpenAIAdapter
        return cast("Self", super().__new__(chosen))

    def __init__(self, config: ProviderConfig) -> None:
        """Set the script up.

        Raises:
            ConfigurationError: If the options are wrong.
        """
        super().__init__(config)
        assert isinstance(self.options, MockOptions)
        self._script = ScriptedTransport(self.options, name=config.name, dialect=self.dialect)
        self._transport = self._script

    @property
    def calls(self) -> int:
        """Inference calls that reached this mock so far."""
        return self._script.calls

    def _read_base_url(self) -> str:
        # What the configuration says only chooses the dialect; nothing is ever called there.
        return self.default_base_url or ""

    def _read_key(self) -> str | None:
        return None


class MockOpenAIAdapter(MockAdapter, OpenAIAdapter):
    """The OpenAI adapter with a scripted upstream."""


class MockVLLMAdapter(MockAdapter, VLLMAdapter):
    """The vLLM adapter with a scripted upstream."""

    dialect: ClassVar[Dialect] = "vllm"


def _points_at_vllm(config: ProviderConfig) -> bool:
    imitates = config.options.get("imitates")
    if imitates is not None:
        return bool(imitates == "vllm")
    return "vllm" in f"{config.base_url or ''} {config.name}".lower()
