"""Takes keys, addresses and paths out of texts that a provider wrote."""

from __future__ import annotations

import base64
import re
import string
from urllib.parse import quote

MAX_MESSAGE = 1_024
"""Characters of a provider's error text that are kept."""

SHORTEST_PIECE = 8
"""Characters of a key in a row that are taken out, also where the rest is missing."""

# A run of eight holds a whole block of four that begins at a multiple of four.
_BLOCK = 4
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

_REPLACEMENTS = (
    # Credentials: "Bearer x", "sk-…", and the masked "sk-ab***yz" that OpenAI echoes.
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',;]+"), r"\1 [key]"),
    (re.compile(r"\b(?:sk|pk|rk|hf|gsk|xai|nvapi)[-_][\w*.\-]{6,}"), "[key]"),
    (re.compile(r"(?i)\b(api[-_ ]?key|token|secret|password)(\"?\s*[:=]\s*\"?)[^\s\"',;]{6,}"),
     r"\1\2[key]"),
    # A look behind keeps each search linear: it begins where a run of such letters begins.
    # Addresses: URLs, IPv4 and IPv6 with and without port, host:port, internal host names.
    (re.compile(r"(?i)\b[a-z][a-z0-9+.\-]{1,20}://[^\s\"'<>)\]]+"), "[address]"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b"), "[address]"),
    (re.compile(r"(?i)\[?(?<![\w:])(?=[0-9a-f:]{0,38}::|(?:[0-9a-f]{1,4}:){4})[0-9a-f:.]{2,45}\]?"
                r"(?::\d{1,5})?"), "[address]"),
    (re.compile(r"(?i)(?<![\w.\-])(?=[a-z0-9\-.]{0,60}[a-z])[a-z0-9\-]{1,63}(?:\.[a-z0-9\-]{1,63})*"
                r":\d{2,5}\b"), "[address]"),
    (re.compile(r"(?i)(?<![\w.\-])(?:[a-z0-9\-]{1,63}\.)+(?:internal|local|localdomain|lan|corp|svc|cluster|"
                r"com|net|org|io|ai|cloud|invalid)\b"), "[address]"),
    (re.compile(r"(?i)\blocalhost\b"), "[address]"),
    # Paths of two parts and more that begin at a root; "and/or" and "m/s" stay.
    (re.compile(r"(?<![\w\]])(?:/[\w.\-@+~]+){2,}/?"), "[path]"),
    (re.compile(r"\b[A-Za-z]:\\[\w.\\\- ]+"), "[path]"),
)  # fmt: skip


def scrub(text: str, *, secret: str | None = None) -> str:
    """Make a provider's text fit for callers and logs.

    Args:
        text: What the provider wrote. Only the first part of it is looked at.
        secret: The key that was sent, which must not come back: not whole, not in pieces of
            eight characters and more, and not in base64, hexadecimal or URL encoding.

    Returns:
        At most `MAX_MESSAGE` characters on one line, without keys, addresses and paths.
    """
    # Twice the length that is kept: enough for what replacing may shorten, and it bounds
    # the work that a huge text can cause.
    if secret:
        # A little more first, so that no half of the key is left at the end.
        text = text[: 2 * MAX_MESSAGE + len(secret)].replace(secret, "[key]")
        text = _without_pieces(text[: 2 * MAX_MESSAGE], secret)
    text = text[: 2 * MAX_MESSAGE]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _without_pieces(text: str, secret: str) -> str:
    """The text without runs of a key's letters, in any of its spellings."""
    if len(secret) < SHORTEST_PIECE:
        return text
    spellings = "\n".join(_spellings(secret)).translate(_LOWER)
    lowered = text.translate(_LOWER)
    kept, done, at = [], 0, 0
    while at + _BLOCK <= len(lowered):
        start, end = max(at, done), at + _BLOCK
        if lowered[start:end] in spellings:
            while start > done and lowered[start - 1 : end] in spellings:
                start -= 1
            while end < len(lowered) and lowered[start : end + 1] in spellings:
                end += 1
            if end - start >= SHORTEST_PIECE:
                kept += [text[done:start], "[key]"]
                done = end
                at = end - end % _BLOCK
        at += _BLOCK
    return "".join((*kept, text[done:]))


def _spellings(secret: str) -> list[str]:
    raw = secret.encode()
    found = [secret, quote(secret, safe=""), raw.hex(), "%" + raw.hex("%")]
    for before in range(3):
        # Base64 depends on how many bytes stand before; a few of its letters at both ends are
        # those of the neighbours.
        encoded = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
        inner = encoded[2 * before : -1]
        found += [inner, inner.replace("+", "-").replace("/", "_")]
    return found
