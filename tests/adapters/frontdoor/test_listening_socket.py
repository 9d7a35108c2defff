"""The listening socket: what its connections inherit, and what its errors say."""

import socket
import sys

import pytest

from adapters.frontdoor.listening_socket import ListenError, open_listening_socket, turn_away


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT exists on Linux only")
def test_accepted_sockets_inherit_the_options() -> None:
    """No delay, keep-alive and the user timeout are on the accepted socket."""
    with open_listening_socket("127.0.0.1", 0, user_timeout=7.5) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                tcp = socket.IPPROTO_TCP
                assert accepted.getsockopt(tcp, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert accepted.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 7500
                assert accepted.getsockopt(tcp, socket.TCP_KEEPIDLE) == 30
                assert accepted.getsockopt(tcp, socket.TCP_KEEPINTVL) == 10
                assert accepted.getsockopt(tcp, socket.TCP_KEEPCNT) == 3


def test_busy_port_says_what_to_do() -> None:
    """A port in use is named, with the option that changes it."""
    with open_listening_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ListenError, match=r"already in use.*--port") as caught:
            open_listening_socket("127.0.0.1", port)
    assert f"port {port} on 127.0.0.1" in str(caught.value)
    assert (caught.value.host, caught.value.port) == ("127.0.0.1", port)
    assert not isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("no-such-host.invalid", 0, "unknown.*--host"),
        ("a" * 70, 0, "unknown.*--host"),
        ("192.0.2.1", 0, "not an address of this machine.*--host"),
        ("127.0.0.1", 65536, "does not exist.*--port"),
        ("127.0.0.1", -1, "does not exist.*--port"),
    ],
)
def test_wrong_addresses_say_what_to_do(host: str, port: int, text: str) -> None:
    """Each kind of wrong address has its own advice."""
    with pytest.raises(ListenError, match=text):
        open_listening_socket(host, port)


def test_ipv6_address_is_listened_on() -> None:
    """An IPv6 literal gives an IPv6 socket."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with open_listening_socket("::1", 0) as listener:
        assert listener.family == socket.AF_INET6
        socket.create_connection(listener.getsockname()[:2]).close()


def test_names_prefer_ipv4() -> None:
    """A name with both kinds of address is bound where every client finds it."""
    with open_listening_socket("localhost", 0) as listener:
        assert listener.family == socket.AF_INET
        assert not listener.get_inheritable()


@pytest.mark.skipif(sys.platform != "linux", reason="sockets have filters on Linux only")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_is_turned_away_has_not_begun(host: str) -> None:
    """A connection that waits to be accepted is served; a later one does not come about."""
    with open_listening_socket(host, 0) as listener:
        listener.setblocking(True)
        listener.settimeout(5)
        address = listener.getsockname()[:2]
        with socket.create_connection(address, timeout=5) as early:
            assert turn_away(listener)
            accepted, _ = listener.accept()
            with accepted:
                early.sendall(b"ping")
                assert accepted.recv(4) == b"ping"
                accepted.sendall(b"pong")
                assert early.recv(4) == b"pong"
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
