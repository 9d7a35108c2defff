"""`HealthLog`: one line for the people on call whenever a provider leaves or comes back."""

from __future__ import annotations

import logging
import math

from engine.resilience.health_status import HealthReason

logger = logging.getLogger("engine.health")


class HealthLog:
    """Tells what happens to one provider; called only when its state changes.

    That bounds the lines: an ejection lasts seconds, and many failures make one. A line
    holds the provider's name, words of this project and numbers, and never a text of the
    provider, which may hold a part of the key or of a prompt.

    Args:
        name: The provider's name.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def left(self, cause: HealthReason, seconds: float, reason: str) -> None:
        """It went out of rotation.

        Args:
            cause: The word for it.
            seconds: For how long; infinite until somebody restores it.
            reason: What happened, in our own words.
        """
        if cause is HealthReason.MISCONFIGURED:
            # Louder than the rest: time alone heals nothing here.
            logger.error(
                "provider %s is closed as misconfigured for %.1f s: %s; "
                "check its key, its permissions and its model names",
                self._name,
                seconds,
                reason,
            )
        elif math.isinf(seconds):
            logger.warning("provider %s is ejected until it is restored: %s", self._name, reason)
        else:
            logger.warning("provider %s is ejected for %.1f s: %s", self._name, seconds, reason)

    def exhausted(self, seconds: float, reason: str) -> None:
        """It has used up a quota, and is closed for some seconds."""
        logger.warning(
            "provider %s is closed as exhausted for %.1f s: %s", self._name, seconds, reason
        )

    def back(self, reason: str, growing: float) -> None:
        """It is in rotation again, and grows to its full share for so many seconds."""
        logger.warning(
            "provider %s is back in rotation: %s; full share in %.1f s", self._name, reason, growing
        )
