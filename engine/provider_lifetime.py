"""Start and close the providers that a router owns."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import anyio

from engine.provider import BaseProvider

logger = logging.getLogger("engine.router")

CLOSE_GRACE = 5.0
"""Seconds that one provider may take to close before it is left behind."""


async def start_providers(providers: Iterable[BaseProvider]) -> None:
    """Start all providers at the same time.

    Raises:
        Exception: The first failure to start, as it came.
    """
    # Most have nothing to start, and ten thousand tasks for that would cost a second.
    slow = [p for p in providers if type(p).start is not BaseProvider.start]
    failures: list[Exception] = []

    async def start(provider: BaseProvider) -> None:
        try:
            await provider.start()
        except Exception as error:  # noqa: BLE001 - raised below, without a group around it
            failures.append(error)

    async with anyio.create_task_group() as group:
        for provider in slow:
            group.start_soon(start, provider)
    if failures:
        raise failures[0]


async def close_providers(providers: Iterable[BaseProvider]) -> None:
    """Close all providers, also under cancellation; a failure is logged and passed over."""
    for provider in providers:
        if type(provider).aclose is BaseProvider.aclose:
            continue
        with anyio.move_on_after(CLOSE_GRACE, shield=True):
            try:
                await provider.aclose()
            except Exception as error:  # noqa: BLE001 - one that cannot close must not keep the rest open
                logger.warning(
                    "provider %s failed to close: %s", provider.name, type(error).__name__
                )
