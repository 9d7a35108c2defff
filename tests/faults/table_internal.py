"""Faults inside the gateway that do not apply to it; the others stand beside their tests."""

from __future__ import annotations

DOES_NOT_APPLY = {
    "N19": "the gateway reads no memory limit of its cgroup, and sheds no load because of one. "
    "What it holds is bounded by counts instead: mailboxes, places, buffers, bodies, events, "
    "kept answers and stories all have a size, so that its memory follows from its configuration. "
    "Above that the platform's limit ends the process, as in N22. Shedding by steps near a limit "
    "would need an account of bytes in flight, which is not there.",
}
