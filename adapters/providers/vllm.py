"""The adapter for vLLM servers."""

from __future__ import annotations

from adapters.providers.http import HttpAdapter


class VLLMAdapter(HttpAdapter):
    """Speaks to a vLLM server at `base_url`, such as `http://127.0.0.1:8000/v1`.

    A key is sent only if `api_key_env` names an environment variable that holds one.
    """
