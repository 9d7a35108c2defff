"""Idempotency keys: which are accepted, and how two requests are told to be the same.

A caller that is not sure whether its request arrived sends it again with the same key,
and is served by the one that runs, or gets the answer that was kept. The key alone does
not prove that both ask the same, so a fingerprint of the whole request stands beside it.
"""

from __future__ import annotations

import hashlib
import json

from engine.errors import InvalidRequestError
from engine.operations import Request

KEY_FIELD = "Idempotency-Key"
"""Name of the header field that carries a key; errors name it as their `param`."""

MAX_KEY = 255
"""Characters that a key may have at most; a UUID has 36."""

UNDER_WAY = "idempotency_in_progress"
REUSED = "idempotency_key_reused"
INVALID = "invalid_idempotency_key"


def check_key(key: str) -> str:
    """Return the key if it is one: 1 to 255 characters of printable ASCII.

    Raises:
        InvalidRequestError: If it is not. The text does not hold the key.
    """
    if 0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable():
        return key
    msg = f"an idempotency key must have 1 to {MAX_KEY} characters of printable ASCII"
    raise InvalidRequestError(msg, param=KEY_FIELD, code=INVALID)


def fingerprint(request: Request) -> bytes:
    """What makes a request the same as another: SHA-256 of operation, streaming and body.

    The bytes of the body count as they came; a request made in Python counts as JSON with
    sorted keys.

    Raises:
        InvalidRequestError: If the body holds something that JSON cannot express.
    """
    digest = hashlib.sha256(f"{request.operation.value}\n{request.streamed:d}\n".encode())
    digest.update(request.raw if request.raw is not None else _canonical(request))
    return digest.digest()


def _canonical(request: Request) -> bytes:
    try:
        return json.dumps(request.body, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        msg = "a request with an idempotency key must be JSON: it holds something that is not"
    raise InvalidRequestError(msg, code="not_json")


def key_reused() -> InvalidRequestError:
    """The error of a request that brings another one's key."""
    return InvalidRequestError(
        "this idempotency key was used for another request: take a new key, or send the "
        "very same request",
        param=KEY_FIELD,
        code=REUSED,
        status=422,
    )


def cannot_join() -> InvalidRequestError:
    """The error of a request that comes when the running stream's beginning is gone."""
    return InvalidRequestError(
        "the request with this idempotency key is running, and its stream has grown too "
        "long to be joined: try again when it has ended",
        param=KEY_FIELD,
        code=UNDER_WAY,
        status=409,
    )
