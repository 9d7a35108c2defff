"""Faults between gateways that do not apply, because nothing is shared between them yet."""

from __future__ import annotations

_NO_CACHE = (
    "there is no cache outside of the process: the only answers that are kept are those of "
    "`Idempotency-Key`, in a bounded store in memory, "
)

DOES_NOT_APPLY = {
    "D1": f"{_NO_CACHE}which cannot be down.",
    "D2": f"{_NO_CACHE}which cannot be slow.",
    "D3": f"{_NO_CACHE}which no network stands before.",
    "D4": f"{_NO_CACHE}filed under the caller, its key and a digest of the request, which nobody "
    "else can write to.",
    "D5": f"{_NO_CACHE}and requests with one key are made once while one of them runs. It begins "
    "empty after a restart, and the oldest leave when it is full.",
    "D6": "limits are counted by each process for itself; there is no shared store of them to "
    "lose. With several replicas each is given its part of a provider's limit.",
    "D7": "as D6: replicas do not know of each other, and cannot disagree. Together they use at "
    "most the sum of what each is configured for.",
    "D10": "the store of `Idempotency-Key` is each replica's own. A request that is repeated with "
    "its key at another replica is a new one there, and may be billed twice; callers that need "
    "more send a key's requests to one replica.",
}
