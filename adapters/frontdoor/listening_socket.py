"""The socket that the server listens on, made by us and not by the server.

Options set on a listening socket pass to the sockets it accepts (Linux). So the one place where
the socket is made decides how every connection fails: a peer that vanished, or that never reads, is
ended by the kernel after ``user_timeout`` seconds, which frees buffers that Python cannot free.
"""

import ctypes
import errno
import socket
import struct
import sys
from typing import Final

DEFAULT_BACKLOG: Final = 2048
"""Connections that may wait to be accepted; Hypercorn's 100 overflows in one burst of clients."""
DEFAULT_USER_TIMEOUT: Final = 30.0
"""Seconds that sent data may wait for an acknowledgement, or a window stay shut, until a reset."""

_KEEPALIVE_IDLE: Final = 30
_KEEPALIVE_INTERVAL: Final = 10
_KEEPALIVE_PROBES: Final = 3
_MAX_PORT: Final = 65535

_SO_ATTACH_FILTER: Final = 26
_SYN: Final = 0x02
_ACK: Final = 0x10
_FLAGS_OFFSET: Final = 13
_ONLY_FIRST_PACKETS: Final = (
    # Classic BPF over the TCP header: drop what has SYN and not ACK, keep everything else.
    (0x30, 0, 0, _FLAGS_OFFSET),
    (0x54, 0, 0, _SYN | _ACK),
    (0x15, 0, 1, _SYN),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFF),
)


class ListenError(Exception):
    """The address cannot be listened on; the message says what to do.

    Attributes:
        host: the host that was asked for.
        port: the port that was asked for.
    """

    def __init__(self, message: str, *, host: str, port: int) -> None:
        """Keep the address beside the message."""
        super().__init__(message)
        self.host = host
        self.port = port


def open_listening_socket(
    host: str,
    port: int,
    *,
    backlog: int = DEFAULT_BACKLOG,
    user_timeout: float = DEFAULT_USER_TIMEOUT,
) -> socket.socket:
    """Open a TCP socket that listens, with options that its connections inherit.

    A name that has IPv4 and IPv6 addresses is bound on IPv4, because one socket is one address and
    clients that try both find it there. ``::`` listens on both where the system lets it.

    Args:
        host: address or name of this machine; ``0.0.0.0`` or ``::`` for all of them.
        port: 0 to 65535; 0 lets the system choose.
        backlog: connections that may wait to be accepted.
        user_timeout: seconds, see `DEFAULT_USER_TIMEOUT`; 0 leaves the system's rule (Linux only).

    Returns:
        A non-blocking socket, not inherited by child processes. The caller closes it.

    Raises:
        ListenError: the port is busy or not allowed, or the host is not one of this machine.
    """
    family, address = _resolve(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        _set_options(listener, user_timeout=user_timeout)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ListenError(_advice(error, host, port), host=host, port=port) from error
    return listener


def turn_away(listener: socket.socket) -> bool:
    """Let no new connection begin, while those that have begun are still accepted.

    Closing a listening socket resets every connection that waits to be accepted, of which a
    client may believe that it is open, and whose request may be on the way. With this first, and
    a moment between, there is none. Linux only: the kernel drops what would open a connection
    (`socket(7)`, ``SO_ATTACH_FILTER``), so the client tries again, and is refused by then.

    Args:
        listener: from `open_listening_socket`.

    Returns:
        Whether the kernel does so.
    """
    if not sys.platform.startswith("linux"):
        return False
    program = b"".join(struct.pack("=HBBI", *step) for step in _ONLY_FIRST_PACKETS)
    steps = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of steps, and where they are; the kernel copies them.
    pointer = struct.pack("@HP", len(_ONLY_FIRST_PACKETS), ctypes.addressof(steps))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
    except OSError:
        # Some sandboxes have no filters; then closing is all there is.
        return False
    return True


def _resolve(host: str, port: int) -> tuple[int, tuple[str | int | bytes, ...]]:
    """Turn host and port into a family and an address, IPv4 first."""
    if not 0 <= port <= _MAX_PORT:
        message = f"port {port} does not exist: choose one from 0 to {_MAX_PORT} with --port"
        raise ListenError(message, host=host, port=port)
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        message = (
            f"host {host!r} is unknown: use an address of this machine, "
            "127.0.0.1 for local clients only or 0.0.0.0 for all, with --host"
        )
        raise ListenError(message, host=host, port=port) from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, address


def _set_options(listener: socket.socket, *, user_timeout: float) -> None:
    """Set what the accepted sockets shall inherit."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    # Names that only some systems have; a gateway under development runs on the others as well.
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", round(user_timeout * 1000)),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _advice(error: OSError, host: str, port: int) -> str:
    """Say what went wrong and what the reader can do about it."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is already in use: "
            "stop the other process or choose another with --port"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"port {port} on {host} needs rights that this process does not have: "
            "choose a port from 1024 on with --port, or grant CAP_NET_BIND_SERVICE"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{host} is not an address of this machine: "
            "use 127.0.0.1 for local clients only or 0.0.0.0 for all, with --host"
        )
    return f"cannot listen on {host} port {port}: {error.strerror or error}"
