"""Mistakes that the front door itself finds in a request, before the engine hears of it.

```
engine.InvalidRequestError
├── UnauthorizedError          401  no key, or one that is not accepted
├── ForbiddenError             403  not for this caller
├── UnknownRouteError          404  nothing is served at this path
└── MethodNotAllowedError      405  the path is served, but not with this method
```
"""

from __future__ import annotations

from engine.errors import InvalidRequestError


class UnauthorizedError(InvalidRequestError):
    """No key came, or one that is not accepted; the text never says which part was wrong."""

    def __init__(self) -> None:
        super().__init__(
            "a valid API key is needed: send it as 'Authorization: Bearer KEY' or as 'x-api-key'",
            code="invalid_api_key",
            status=401,
        )


class ForbiddenError(InvalidRequestError):
    """The caller may not do this, whatever API key it has.

    Args:
        advice: How the operator may.
    """

    def __init__(
        self, advice: str = "ask from the gateway's own machine, or with the admin key"
    ) -> None:
        super().__init__(f"this is for the operator only: {advice}", code="forbidden", status=403)


class UnknownRouteError(InvalidRequestError):
    """Nothing is served at this path."""

    def __init__(self) -> None:
        super().__init__("there is nothing at this path", code="not_found", status=404)


class MethodNotAllowedError(InvalidRequestError):
    """The path is served, but not with this method.

    Attributes:
        allowed: The methods that are, as the `Allow` header wants them.
    """

    def __init__(self, allowed: str) -> None:
        super().__init__(
            f"this path is served with {allowed} only", code="method_not_allowed", status=405
        )
        self.allowed = allowed
