"""The request of an active health check, as all adapters for HTTP APIs send it."""

from __future__ import annotations

import httpx

from adapters.providers.answer_reader import AnswerReader


def check_url(base_url: str, path: str) -> httpx.URL:
    """Where a check goes: always to the server that the requests go to.

    Args:
        base_url: Where the API is, without a slash at its end.
        path: With a leading slash below the server's root, else below the base URL.

    Raises:
        httpx.InvalidURL: If the path cannot stand in a URL.
    """
    if not path.startswith("/"):
        return httpx.URL(f"{base_url}/{path}")
    base = httpx.URL(base_url)
    # Put together and not joined: `//elsewhere/health` would lead to another server, and
    # take the key along.
    return httpx.URL(f"{base.scheme}://{base.netloc.decode('ascii')}{path}")


async def skip_body(reader: AnswerReader, limit: int) -> None:
    """Read a body to its end, so that the connection can be used again, or up to a limit.

    Args:
        reader: The answer.
        limit: Bytes beyond which no more is read.

    Raises:
        ProviderError: If the body was cut.
    """
    size = 0
    while size <= limit and (part := await reader.read()) is not None:
        size += len(part)
