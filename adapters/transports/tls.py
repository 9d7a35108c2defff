"""The one TLS context of the process."""

import functools
import ssl
import threading

import httpx

_building = threading.Lock()


def shared_tls_context() -> ssl.SSLContext:
    """Return the process-wide TLS context, building it at the first call (about 25 ms).

    It verifies certificates and host names against the bundle of certifi (or against
    `SSL_CERT_FILE` or `SSL_CERT_DIR` where these are set), and speaks TLS 1.2 or newer.
    """
    with _building:  # two threads at once would build, and then hold, two of them
        return _context()


@functools.cache
def _context() -> ssl.SSLContext:
    context = httpx.create_ssl_context(verify=True, trust_env=True)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Both transports speak HTTP/1.1 only, so neither may rewrite what the other offers.
    context.set_alpn_protocols(["http/1.1"])
    return context
