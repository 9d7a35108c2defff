"""Why a connection failed, in the system's words and nobody's address."""

import os
import socket
import ssl
from typing import Final

from adapters.transports.address_filter import RefusedAddressError

_DEPTH: Final = 8


def system_words(error: BaseException) -> str:
    """Say why, without the addresses, URLs and headers that exceptions carry.

    Clients wrap the system's errors, sometimes several for several addresses; the first that
    says something wins.

    Returns:
        For example `Connection refused`, or nothing where the system said nothing.
    """
    cause: BaseException | None = error
    for _ in range(_DEPTH):
        if cause is None:
            break
        if words := _words(cause):
            return words
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        else:
            cause = cause.__cause__ or cause.__context__
    return ""


def _words(error: BaseException) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            # The rest of the sentence names the host. Only OpenSSL's own errors have one.
            return str(getattr(error, "verify_message", "")).partition(",")[0]
        case ssl.SSLError():
            return getattr(error, "reason", None) or ""
        case RefusedAddressError():
            return str(error)  # in our own words, and without the address
        case socket.gaierror():
            return error.strerror or ""  # its numbers are not errno's
        case OSError() if error.errno:
            return os.strerror(error.errno)
        case _:
            return ""
