"""The admin routes: what an operator may see and change while the gateway serves.

What is changed here lasts until the configuration file is applied again or the process ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.frontdoor.openai_dialect import encode
from adapters.frontdoor.request_errors import UnknownRouteError
from adapters.frontdoor.service_endpoints import status_object
from adapters.json_body import parse_request_body
from engine.config.values import ModelName, Seconds, Weight
from engine.configuration_change import ConfigurationChange
from engine.errors import ConfigurationError, InvalidRequestError

if TYPE_CHECKING:
    from adapters.frontdoor.served_request import FrontDesk, ServedRequest

MAX_BODY: Final = 65_536
"""Bytes of a body; a change of a provider takes 100."""

MOST_REQUESTS: Final = 1_000
"""Requests that are listed at once."""

_LISTED: Final = 20
_SHOWN_NAMES: Final = 10
_MAX_SHOWN: Final = 100
_JSON: Final = b"application/json"
_NO_FILE: Final = "the gateway was started without a configuration file: there is nothing to reload"


class _Body(BaseModel):
    """What a change may say; nothing else, and no text in the place of a number."""

    model_config = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class _Nothing(_Body):
    pass


class _WeightBody(_Body):
    weight: Weight
    model: ModelName | None = None


class _EnabledBody(_Body):
    enabled: bool


class _EjectBody(_Body):
    seconds: Seconds | None = None


class _ListQuery(BaseModel):
    """The query of the list; a query is text, so its numbers are read from it."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    limit: Annotated[int, Field(ge=1, le=MOST_REQUESTS)] = _LISTED


_Read = TypeVar("_Read", bound=BaseModel)


class AdminEndpoints:
    """Endpoints that change the engine, or tell what it did.

    Args:
        desk: What all requests share.
    """

    __slots__ = ("_actions", "_desk")

    def __init__(self, desk: FrontDesk) -> None:
        self._desk = desk
        self._actions: dict[str, Callable[[ServedRequest, str], Awaitable[None]]] = {
            "weight": self._set_weight,
            "enabled": self._set_enabled,
            "eject": self._eject,
            "restore": self._restore,
        }

    async def show_status(self, request: ServedRequest) -> None:
        """Answer with everything that the gateway tells about itself, as `/status` does."""
        await request.answer(encode(status_object(self._desk)))

    async def reload(self, request: ServedRequest) -> None:
        """Read the configuration file again and put it into service.

        Raises:
            InvalidRequestError: If the file cannot be used (422), or there is none (409).
            RejectedError: If too many reloads wait already, or the gateway is shutting down.
        """
        await _read_body(request, _Nothing)
        reloading = self._desk.reloading
        if reloading is None:
            raise InvalidRequestError(_NO_FILE, code="no_configuration_file", status=409)
        try:
            report = await request.exchange.run(lambda: reloading.reload("POST /admin/reload"))
        except ConfigurationError as error:
            raise _refused(error, 422) from error
        generation = self._desk.router.status().generation
        await request.answer(encode({**report.as_dict(), "generation": generation}))

    # ── one provider ─────────────────────────────────────────────────────────────

    async def change_provider(self, request: ServedRequest) -> None:
        """Do what the last segment of the path says to the provider that it names.

        Raises:
            InvalidRequestError: If there is no such provider or action (404), or the body
                is not acceptable (400, 415), or nothing could be served then (409).
        """
        path: str = request.scope["path_params"]["id"]
        name, _, action = path.rpartition("/")
        act = self._actions.get(action)
        if act is None or not name:
            raise UnknownRouteError
        known = [provider.name for provider in self._desk.router.config.providers]
        if name not in known:
            more = len(known) - _SHOWN_NAMES
            names = ", ".join(known[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
            msg = f"no provider is named {name[:_MAX_SHOWN]!r} (known: {names})"
            raise InvalidRequestError(msg, param="provider", code="provider_not_found", status=404)
        try:
            await act(request, name)
        except ConfigurationError as error:
            raise _refused(error, 409) from error

    async def _set_weight(self, request: ServedRequest, name: str) -> None:
        body = await _read_body(request, _WeightBody)
        router = self._desk.router
        change = await request.exchange.run(
            lambda: router.set_weight(name, body.weight, model=body.model)
        )
        await self._answer(request, name, change)

    async def _set_enabled(self, request: ServedRequest, name: str) -> None:
        body = await _read_body(request, _EnabledBody)
        router = self._desk.router
        change = await request.exchange.run(lambda: router.set_enabled(name, body.enabled))
        await self._answer(request, name, change)

    async def _eject(self, request: ServedRequest, name: str) -> None:
        body = await _read_body(request, _EjectBody)
        self._desk.router.eject(name, body.seconds)
        await self._answer(request, name, None)

    async def _restore(self, request: ServedRequest, name: str) -> None:
        await _read_body(request, _Nothing)
        self._desk.router.restore(name)
        await self._answer(request, name, None)

    async def _answer(
        self, request: ServedRequest, name: str, change: ConfigurationChange | None
    ) -> None:
        """Answer with what has changed, and with the provider's state as it is now."""
        status = status_object(self._desk)
        actors = [actor for actor in status["actors"] if actor["name"] == name]
        await request.answer(
            encode(
                {
                    "changes": [] if change is None else change.as_dict()["changes"],
                    "generation": status["generation"],
                    "provider": actors[0] if actors else None,
                }
            )
        )

    # ── what became of requests ──────────────────────────────────────────────────

    async def list_requests(self, request: ServedRequest) -> None:
        """Answer with the stories of the latest requests, the newest first.

        Raises:
            InvalidRequestError: If the query is not acceptable.
        """
        query: bytes = request.scope.get("query_string", b"")
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        asked = _validated(_ListQuery, dict(pairs))
        recent = self._desk.router.recent_requests(asked.limit)
        await request.answer(encode({"object": "list", "data": recent}))

    async def show_request(self, request: ServedRequest) -> None:
        """Answer with the story of one request.

        Raises:
            InvalidRequestError: If nothing is known of a request with that id (404).
        """
        identity: str = request.scope["path_params"]["id"]
        story = self._desk.router.explain(identity)
        if story is None:
            kept = self._desk.router.config.history
            msg = (
                f"nothing is known of request {identity[:_MAX_SHOWN]!r}: the latest {kept} "
                "requests that reached the engine are kept (setting `history`)"
            )
            raise InvalidRequestError(msg, param="id", code="request_not_found", status=404)
        await request.answer(encode(story))


def _refused(error: ConfigurationError, status: int) -> InvalidRequestError:
    """A configuration that cannot serve, told to the operator; it holds no secret."""
    return InvalidRequestError(error.message, code="configuration_refused", status=status)


async def _read_body(request: ServedRequest, kind: type[_Read]) -> _Read:
    """Read a JSON object; an empty body is an empty object.

    JSON only, so that no page in a browser can send it without asking first.
    """
    raw = await request.exchange.body()
    if len(raw) > MAX_BODY:
        msg = f"the body may have {MAX_BODY} bytes"
        raise InvalidRequestError(msg, code="body_too_large", status=413)
    content_type = request.headers.get(b"content-type")
    if (raw or content_type) and (content_type or b"").partition(b";")[0].strip().lower() != _JSON:
        msg = "send the body as JSON, with 'content-type: application/json'"
        raise InvalidRequestError(
            msg, param="content-type", code="unsupported_media_type", status=415
        )
    return _validated(kind, parse_request_body(raw) if raw else {})


def _validated(kind: type[_Read], data: dict[str, Any]) -> _Read:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        # By the field's name, which the operator wrote; never by its value.
        found = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, found["loc"]))[:_MAX_SHOWN]
        known = ", ".join(kind.model_fields) or "none"
        msg = f"{field}: {found['msg']} (known fields: {known})"
        raise InvalidRequestError(msg, param=field or None, code="invalid_value") from None
