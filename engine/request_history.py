"""`RequestHistory`: the records of the latest requests, to be asked for by their ids."""

from __future__ import annotations

from collections import deque
from itertools import islice

from engine.request_record import RequestRecord


class RequestHistory:
    """Keeps the latest records, running requests included; the oldest make room.

    A record is a few hundred bytes and a list of steps; a request's body is not in it.
    Adding one is on the way of every request, so that is cheap, and finding one is not.

    Attributes:
        wanted: Whether records are kept at all.

    Args:
        size: Records that are kept; 0 keeps none.
    """

    __slots__ = ("_records", "add", "wanted")

    def __init__(self, size: int) -> None:
        self._keep(deque(maxlen=size), size)

    def _keep(self, records: deque[RequestRecord], size: int) -> None:
        self._records = records
        self.wanted = size > 0
        # Keeps a record; a bound method of the deque, so that it costs no call of our own.
        self.add = records.append

    def __len__(self) -> int:
        return len(self._records)

    def resize(self, size: int) -> None:
        """Keep another number of records from now on."""
        self._keep(deque(self._records, maxlen=size), size)

    def find(self, request_id: str) -> RequestRecord | None:
        """The newest record of that id, or None if it was never there or has made room."""
        for record in reversed(self._records):
            if record.request_id == request_id:
                return record
        return None

    def latest(self, count: int) -> list[RequestRecord]:
        """The newest records, the newest first."""
        return list(islice(reversed(self._records), count))
