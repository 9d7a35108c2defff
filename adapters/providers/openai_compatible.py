"""The adapter for any other server that speaks the OpenAI API."""

from __future__ import annotations

from typing import ClassVar

from adapters.providers.http import HttpAdapter


class OpenAICompatibleAdapter(HttpAdapter):
    """Speaks to the server at `base_url`: llama.cpp, SGLang, LM Studio, a hosted API, ….

    A key is sent only if `api_key_env` names an environment variable that holds one.
    """

    may_be_llamacpp: ClassVar[bool] = True
