"""The adapter for OpenAI's own API."""

from __future__ import annotations

from typing import ClassVar

from adapters.providers.http import HttpAdapter


class OpenAIAdapter(HttpAdapter):
    """Speaks to `https://api.openai.com/v1`, or to `base_url` if there is one.

    Needs a key in the environment variable that `api_key_env` names, `OPENAI_API_KEY`
    unless told otherwise.
    """

    default_base_url: ClassVar[str | None] = "https://api.openai.com/v1"
    default_key_env: ClassVar[str | None] = "OPENAI_API_KEY"
    key_required = True
