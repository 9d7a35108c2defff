"""The endpoints around the operations: models, health, readiness, status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters.frontdoor.failure import DEFAULT_WAIT, Failure
from adapters.frontdoor.openai_dialect import encode, model_object
from engine.errors import ModelNotFoundError

if TYPE_CHECKING:
    from adapters.frontdoor.served_request import FrontDesk, ServedRequest

_OK = encode({"status": "ok"})
_READY = encode({"status": "ready"})
_UNAVAILABLE = 503
_MAX_SHOWN = 100


async def show_health(request: ServedRequest) -> None:
    """Answer that the process is alive; says nothing about what it can serve."""
    await request.answer(_OK)


async def show_nothing(request: ServedRequest) -> None:
    """Answer a probe of the base URL."""
    await request.answer(b"")


def status_object(desk: FrontDesk) -> dict[str, Any]:
    """Everything that the engine and the process around it tell about themselves."""
    status = desk.router.status().as_dict()
    status["draining"] = desk.draining.is_set()
    if desk.reloading is not None:
        status["reload_error"] = desk.reloading.error or status["reload_error"]
        status["waiting_for_restart"] = list(desk.reloading.waiting)
    return status


class ServiceEndpoints:
    """Endpoints that look at the engine but ask no model.

    Args:
        desk: What all requests share.
        operations: Paths of the operations, for the page at the root.
    """

    __slots__ = ("_desk", "_root")

    def __init__(self, desk: FrontDesk, operations: list[str]) -> None:
        self._desk = desk
        self._root = encode({"service": "inference-gateway", "endpoints": operations})

    async def show_root(self, request: ServedRequest) -> None:
        """Say what this is, to a person with a browser."""
        await request.answer(self._root)

    async def show_readiness(self, request: ServedRequest) -> None:
        """Answer 200 if requests can be served now, else 503; never with a provider's name."""
        draining = self._desk.draining.is_set()
        if self._desk.router.ready and not draining:
            await request.answer(_READY)
            return
        word = "draining" if draining else "unavailable"
        hints = Failure(_UNAVAILABLE, "", "", wait=DEFAULT_WAIT).header_fields()
        await request.answer(encode({"status": word}), status=_UNAVAILABLE, headers=hints)

    async def show_status(self, request: ServedRequest) -> None:
        """Answer with everything that the engine tells about itself."""
        await request.answer(encode(status_object(self._desk)))

    async def list_models(self, request: ServedRequest) -> None:
        """Answer with the models that can be asked for.

        Raises:
            ClientDisconnectedError: If the client left while providers were asked.
        """
        entries = await request.exchange.run(self._desk.router.list_models)
        await request.answer(
            encode({"object": "list", "data": [model_object(entry) for entry in entries]})
        )

    async def show_model(self, request: ServedRequest) -> None:
        """Answer with one model.

        Raises:
            ModelNotFoundError: If no such model is listed.
            ClientDisconnectedError: If the client left while providers were asked.
        """
        name: str = request.scope["path_params"]["id"]
        for entry in await request.exchange.run(self._desk.router.list_models):
            if entry.name == name:
                await request.answer(encode(model_object(entry)))
                return
        msg = f"the model {name[:_MAX_SHOWN]!r} is not served here"
        raise ModelNotFoundError(msg, param="model")
