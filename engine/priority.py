"""`Priority`: how much a request matters when not all can be served."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Criticality classes of a request, the most important first (Google SRE, chapter 21)."""

    CRITICAL_PLUS = 0
    CRITICAL = 1
    SHEDDABLE_PLUS = 2
    SHEDDABLE = 3

    @property
    def word(self) -> str:
        """The class as it is written in headers and output: `sheddable_plus`."""
        return self.name.lower()
