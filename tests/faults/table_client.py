"""What becomes of each fault of a client: the rows of `docs/FAILURES.md`, and their tests.

The tests are in `test_client_*.py`, named after the ids. `upstream` says what the provider
notices of it; health is never touched by what a client does.
"""

from __future__ import annotations

from fault_table import Row

LEFT = "nothing: it has left"
CLOSED = "400, and the end of the connection"


def row(id: str, name: str, caller_sees: str, upstream: str, note: str = "") -> Row:  # noqa: A002
    """One fault of a client.

    Args:
        id: Its id in the catalogue.
        name: What the client does.
        caller_sees: What it is answered.
        upstream: What the provider notices, and may bill.
        note: What an operator should know beside it.
    """
    return Row(id, name, caller_sees, "nothing", upstream, "not at all", note)


NOT_ASKED = "nothing: it is not asked"

ROWS = (
    row("C1", "leaves while it waits in the queue", LEFT, NOT_ASKED,
        "Taken out of the mailbox at once; logged with status 499."),
    row("C2", "leaves before the first byte", LEFT, "maybe: its connection is closed at once",
        "Within a few milliseconds of the client's FIN. The connection is never used again."),
    row("C3", "leaves in the middle of a stream", LEFT,
        "what was generated until its connection was closed, at once",
        "The tokens that the provider had told by then are in the request's story."),
    row("C4", "its host vanishes without a FIN", LEFT,
        "what was generated until the kernel gave the client up",
        "`TCP_USER_TIMEOUT` (30 s) ends a connection that is written to, keep-alive probes "
        "(after 30 s, then every 10 s) one that waits."),
    row("C5", "shuts down its sending half and goes on reading", LEFT,
        "maybe: its connection is closed at once",
        "A half-closed connection counts as one that was left: the two cannot be told apart. "
        "Clients of HTTP do not do this."),
    row("C6", "reads a stream slowly", "the answer, at its own pace",
        "what it generates as it is read: the provider is held back",
        "Held for one stream: the buffers of the sockets, and 64 KiB of ours."),
    row("C7", "never reads", "nothing: its connection is reset after `write_seconds` (30 s)",
        "what was generated until then; its connection is closed"),
    row("C8", "sends a head byte by byte", "408, 10 s after the first byte of the head",
        NOT_ASKED),
    row("C9", "sends a body slowly, or stops", "408 `body_timeout`", NOT_ASKED,
        "After 120 s in all, or when its average falls below 500 bytes/s once 20 s are over."),
    row("C10", "announces a body above the limit", "413 `body_too_large`", NOT_ASKED,
        "Answered before a byte is read; up to 16 MiB are then thrown away for at most 5 s, so "
        "that the answer can be read."),
    row("C11", "sends a body above the limit in chunks", "413 `body_too_large` at the limit",
        NOT_ASKED),
    row("C12", "its Content-Length is too long, or too short", "408 `body_timeout`, or 400",
        NOT_ASKED, "A body that was cut is never taken for a whole one."),
    row("C13", "sends a compressed body", "415 `unsupported_content_encoding`", NOT_ASKED,
        "Nothing is ever unpacked, so a bomb is harmless."),
    row("C14", "sends expensive JSON", "400 `invalid_json`, or the answer",
        "nothing, or the answer",
        "More than 200 levels and integers of more than 4,300 digits are refused; many small "
        "objects and long conversations are bounded by the body's size alone."),
    row("C15", "sends a field twice", "400 `duplicate_field`", NOT_ASKED,
        "For `model`, `stream`, `messages`, `prompt` and `input`, however they are spelled."),
    row("C16", "sends numbers that JSON does not have", "400 `invalid_json`", NOT_ASKED),
    row("C17", "sends text that is not UTF-8", "400 `invalid_json`", NOT_ASKED),
    row("C18", "frames its request in two ways at once", f"{CLOSED}; 501 for an odd coding",
        NOT_ASKED, "Only well-formed chunk extensions are accepted, and thrown away."),
    row("C19", "sends requests ahead of their turn", "the answers in their order",
        "the answers",
        "While a request waits unread, the client's leaving is not noticed: then the deadline "
        "of the running one bounds its work."),
    row("C20", "keeps many idle connections", "the end of the connection after 75 s", NOT_ASKED,
        "There is no number of connections at which others are refused: the limit is the "
        "process's number of descriptors."),
    row("C21", "connects and closes in a loop", LEFT, NOT_ASKED),
    row("C22", "speaks another protocol", "400, 405 or 505, and the end of the connection",
        NOT_ASKED, "Neither 101 nor a frame of HTTP/2 is ever sent."),
    row("C23", "plays tricks with the path", "404, 400 or 414, and the end of the connection",
        NOT_ASKED),
    row("C24", "sends an odd Host, two, or none", CLOSED, NOT_ASKED),
    row("C25", "sends too many header fields", "431, and the end of the connection", NOT_ASKED,
        "More than 100, 8 KiB in one, or 16 KiB together. Of a megabyte the client may see the "
        "end of the connection only."),
    row("C26", "sends two keys, or bytes that are none", "401; 400 for two; 431 for 1 MiB",
        NOT_ASKED, "Keys are compared as bytes, in constant time."),
    row("C27", "waits for `100 Continue` before a body that is refused",
        "100, then the refusal", NOT_ASKED,
        "100 is sent before the request is looked at; the body is then thrown away."),
    row("C28", "repeats the same request in a storm",
        "with `Idempotency-Key` one shared answer; else 503 with `Retry-After` for what finds "
        "no room", "one answer, or those that found room"),
    row("C29", "closes a stream after its headers", LEFT,
        "what was generated until its connection was closed, at once"),
    row("C30", "sends more at once than may run",
        "the answers in the order of the queue; else 503 or 429 with `Retry-After`",
        "the answers that were given",
        "The bounds are those of providers and models; there are none for a single API key."),
)  # fmt: skip
