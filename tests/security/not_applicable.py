"""The rules that do not apply to what exists, each with the reason."""

from __future__ import annotations

NOT_APPLICABLE = {
    "S15": "there is no key store: the accepted keys come from one environment variable, have no "
    "ids, and are kept as digests only (S16 to S18). The rule applies once keys are stored.",
    "S50": "keys have no limits of their own, so there is nothing to cap per key, and bodies pass "
    "unchanged, so nothing is filled in. What bounds a request for everybody is the size and the "
    "depth of its body, its deadline, and the bounded answer.",
    "S51": "nothing is charged: there are no prices, budgets or spend per key. Tokens are counted, "
    "and settled exactly once (tests of the ledger).",
    "S53": "there are no tenants, and no field that a provider may cache or count by is made or "
    "changed here: `user` and `prompt_cache_key` pass as the caller wrote them.",
    "S54": "keys have no share of their own in concurrency or queues. Both are bounded for all "
    "callers together; priorities are the operator's.",
}
