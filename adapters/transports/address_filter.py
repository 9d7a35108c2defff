"""Which addresses a host name may lead to: the one place that all transports ask.

Providers on this machine and in private networks are the rule for people who run their own
models, so loopback and private ranges are allowed. Refused are the addresses at which clouds
hand out credentials to whoever asks, and link-local ones as a whole: no model is served there,
and whoever can change a name in the DNS could make the gateway ask them.
"""

import ipaddress
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_FoundT = TypeVar("_FoundT")

_REFUSED: Final[tuple[_Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local: metadata of AWS, Azure, GCP, OCI, DigitalOcean, ...
        "fe80::/10",  # link-local
        "fd00:ec2::/32",  # AWS: metadata, credentials of EKS pods, time
        "fd20:ce::254/128",  # GCP
        "100.100.100.200/32",  # Alibaba Cloud
        "192.0.0.192/32",  # Oracle Cloud, classic
        "168.63.129.16/32",  # Azure: the host of the machine
    )
)
# IPv6 networks whose addresses end in an IPv4 address to which they lead: IPv4-mapped,
# IPv4-compatible, IPv4-translated (RFC 2765), NAT64 (RFC 6052 and RFC 8215).
_WRAPPING: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_LAST_32_BITS: Final = 0xFFFF_FFFF


class RefusedAddressError(OSError):
    """A host name leads to addresses that no connection may be made to, and to no other."""

    def __init__(self) -> None:
        super().__init__("the host name leads to a link-local or metadata address")


def permitted(
    host: str, found: Iterable[_FoundT], address_of: Callable[[_FoundT], str]
) -> list[_FoundT]:
    """Return what of `found` a connection may be made to.

    Args:
        host: Name or address as the URL has it. An address that is written out in its usual
            form is the operator's will, and may be any.
        found: What the name has been resolved to.
        address_of: Gives the address of one of them as text.

    Raises:
        RefusedAddressError: Nothing is left of what was found.
    """
    every = list(found)
    kept = [each for each in every if not is_refused(host, address_of(each))]
    if every and not kept:
        raise RefusedAddressError
    return kept


def is_refused(host: str, address: str) -> bool:
    """Whether no connection to `address` may be made for `host`."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True  # it is no address that this could judge
    if not any(_is_in_refused(meant) for meant in _meanings(parsed)):
        return False
    try:
        # `0xa9fea9fe` and its like are no usual form, and so are judged like a name.
        return ipaddress.ip_address(host) != parsed
    except ValueError:
        return True


def _is_in_refused(address: _Address) -> bool:
    return any(address.version == net.version and address in net for net in _REFUSED)


def _meanings(address: _Address) -> list[_Address]:
    """An address, and the IPv4 addresses that it may stand for."""
    meanings: list[_Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in net for net in _WRAPPING):
            meanings.append(ipaddress.IPv4Address(int(address) & _LAST_32_BITS))
        if address.sixtofour is not None:
            meanings.append(address.sixtofour)
        if address.teredo is not None:
            meanings += address.teredo
    return meanings
