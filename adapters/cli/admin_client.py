"""Asking the admin routes of a running gateway."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import click
import httpx

from adapters.cli.failure import Failure, Unsuccessful
from adapters.cli.terminal import for_terminal

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT: Final = 330.0
"""Seconds: a reload waits as long as new providers may take to start."""

_CONNECT: Final = 5.0
_OK: Final = 200
_NOT_FOUND: Final = 404

url_option = click.option(
    "--url",
    default=DEFAULT_URL,
    show_default=True,
    help="The running gateway; its admin listener, if it has one.",
)
key_option = click.option("--admin-key-env", help="Environment variable with the admin key.")


def ask_admin(method: str, path: str, *, url: str, admin_key_env: str | None) -> dict[str, Any]:
    """Ask one admin route.

    Args:
        method: HTTP method.
        path: The path, encoded, with its query.
        url: Where the gateway is.
        admin_key_env: Environment variable with the admin key; None sends none.

    Returns:
        The JSON object of the answer.

    Raises:
        Failure: If the URL or the variable cannot be used.
        Unsuccessful: If nobody answers, or with an error.
    """
    _check_url(url)
    headers = {}
    if admin_key_env is not None:
        key = os.environ.get(admin_key_env, "").partition(",")[0].strip()
        if not key or not key.isascii() or not key.isprintable():
            msg = f"the environment variable {admin_key_env} holds no key that can be sent"
            raise Failure(msg)
        headers["authorization"] = f"Bearer {key}"
    try:
        with httpx.Client(
            trust_env=False, timeout=httpx.Timeout(TIMEOUT, connect=_CONNECT), headers=headers
        ) as client:
            response = client.request(method, f"{url.rstrip('/')}{path}")
    except httpx.ConnectError:
        advice = "start one with `inference-gateway serve`, or name another by --url"
        raise Unsuccessful(f"no gateway answers at {url}: {advice}") from None
    except httpx.HTTPError as error:
        raise Unsuccessful(f"no answer from {url}: {type(error).__name__}") from None
    return _answer(response, url)


def _check_url(url: str) -> None:
    try:
        parts = httpx.URL(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.host)
        # The host's own rules, as for `http://[`.
        usable = usable and urlsplit(url).hostname is not None
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise Failure(f"--url must be like {DEFAULT_URL}")


def _answer(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Unsuccessful(f"{url} answered {response.status_code} without JSON: is it a gateway?")
    if response.status_code == _OK:
        return body
    error = body.get("error")
    error = error if isinstance(error, dict) else {}
    message = for_terminal(str(error.get("message") or f"status {response.status_code}"))
    if response.status_code == _NOT_FOUND and error.get("code") == "not_found":
        message = (
            f"{url} has no admin routes: set server.admin_port, whose address --url then "
            "names, or server.admin_key_env"
        )
    raise Unsuccessful(message.splitlines())


@contextmanager
def understood() -> Iterator[None]:
    """Around reading an answer: another version of the gateway may answer differently.

    Raises:
        Unsuccessful: If the answer has another shape.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError):
        msg = "the gateway's answer has another shape than this version knows: use --json"
        raise Unsuccessful(msg) from None


def as_json(value: Any) -> str:
    """JSON for people and machines."""
    return json.dumps(value, indent=2)
