"""Spans, metrics and log lines on their way out of the process."""

from adapters.observability.logs import RequestLog, RequestRecord
from adapters.observability.start import Observability, start_observability

__all__ = ["Observability", "RequestLog", "RequestRecord", "start_observability"]
