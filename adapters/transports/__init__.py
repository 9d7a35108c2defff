"""How bytes reach an upstream: transports behind `httpx.AsyncBaseTransport`."""

from adapters.transports.sharing import TransportLease, share_transport

__all__ = ["TransportLease", "share_transport"]
