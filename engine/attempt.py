"""One call upstream, as an adapter sees it."""

from __future__ import annotations

from collections.abc import Mapping

from engine.config import TimeoutsConfig
from engine.operations import Request

NO_HEADERS: Mapping[str, str] = {}


class Attempt:
    """What an adapter is given for one call upstream.

    Time is not the adapter's business: the engine cancels the call when a limit is hit.
    The limits are here so that an adapter can hand the connect limit to its transport.

    Attributes:
        request: What the caller asked for.
        model: The model's name at this provider.
        request_id: The request's id, to be sent upstream where the API knows one.
        number: 1 for the request's first attempt, over all providers.
        timeouts: Limits of the single phases, seconds.
        trace_headers: Trace context to send upstream; usually empty.
    """

    __slots__ = ("model", "number", "request", "request_id", "timeouts", "trace_headers")

    def __init__(
        self,
        request: Request,
        model: str,
        request_id: str,
        *,
        timeouts: TimeoutsConfig,
        number: int = 1,
        trace_headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        self.request = request
        self.model = model
        self.request_id = request_id
        self.number = number
        self.timeouts = timeouts
        self.trace_headers = trace_headers

    def headers_received(self) -> None:
        """Tell the engine that the answer's headers are here, so the next limit applies."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.request_id!r}, number={self.number}, "
            f"operation={self.request.operation.value!r}, model={self.model!r})"
        )
