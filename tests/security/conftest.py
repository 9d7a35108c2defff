"""The event loop of the served gateway, and the key of its provider."""

from __future__ import annotations

from typing import Any

import pytest
from security_lab import KEY


@pytest.fixture
def anyio_backend() -> Any:
    """As it is served; what differs between event loops is tested elsewhere."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def provider_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The provider's key, in the environment variable `LAB_KEY`."""
    monkeypatch.setenv("LAB_KEY", KEY)
    return KEY
