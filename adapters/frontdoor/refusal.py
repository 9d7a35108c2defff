"""The answer that the front door gives when it does not let a request in.

Everything in front of the routes (framing gate, body limits, drain) refuses in the same shape, the
error object that OpenAI clients know how to read::

    {"error": {"message": "...", "type": "invalid_request_error", "param": null, "code": "..."}}

A refusal always closes its connection: when the framing of a request is in doubt, the bytes that
follow it cannot be trusted to be the start of the next one (RFC 9112, section 11.2).
"""

import json
import secrets
from collections.abc import Sequence

from starlette.types import Message, Send

from adapters.frontdoor.client_advice import cannot_help, repeat_field, wait_fields


class Refusal:
    """One refusal, built once and sent many times.

    Attributes:
        status: HTTP status, 400 to 599.
        code: the machine-readable word in the answer's ``error.code``.
        message: one sentence for the person who reads it.
    """

    __slots__ = ("_end", "_start", "code", "message", "status")

    def __init__(
        self,
        status: int,
        code: str,
        *,
        message: str,
        wait: float | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Build the two ASGI messages of the answer.

        Args:
            status: HTTP status; from 500 on the error's type is ``server_error``.
            code: machine-readable word.
            message: one sentence that says what is wrong and what to do.
            wait: seconds after which another try makes sense; give it with 429 and 503.
            headers: more answer headers, names in lower case.
        """
        self.status = status
        self.code = code
        self.message = message
        kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004
        body = json.dumps(
            {"error": {"message": message, "type": kind, "param": None, "code": code}}
        ).encode()
        advice = [] if wait is None else wait_fields(wait)
        if cannot_help(status):
            advice.append(repeat_field(repeats=False))
        self._start: Message = {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
                (b"vary", b"authorization"),
                (b"connection", b"close"),
                *advice,
                *headers,
            ],
        }
        self._end: Message = {
            "type": "http.response.body",
            "body": body,
            "more_body": False,
        }

    def __repr__(self) -> str:
        """Show status and code."""
        return f"Refusal({self.status}, {self.code!r})"

    async def answer(self, send: Send, *, request_id: str | None = None) -> None:
        """Send the refusal as the whole answer of one request.

        Args:
            send: the request's ASGI ``send``, on which nothing has been sent yet.
            request_id: from `refusal_id`, where it is logged as well; None makes one.
        """
        # A new list each time, because a server or a middleware may add to what it is given.
        field = (b"x-request-id", (request_id or refusal_id()).encode())
        await send({**self._start, "headers": [*self._start["headers"], field]})
        await send(dict(self._end))


def refusal_id() -> str:
    """Make the id of a refused request. It is ours: no header of such a request is trusted."""
    return f"refused-{secrets.token_hex(8)}"
