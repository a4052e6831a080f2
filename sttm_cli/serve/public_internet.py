"""Connections to public addresses only; the address checked is the one connected to."""

from __future__ import annotations

import ipaddress
import socket

from sttm_cli.base.errors import VideoError
from sttm_cli.decode.bounded_http import Bounds, connect_to

SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        # IPv4: https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast.
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 "
        "192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 "
        "192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 "
        # IPv6: https://www.iana.org/assignments/iana-ipv6-special-registry, the addresses that
        # embed IPv4 ones (::/96, ::ffff:0:0/96, 64:ff9b::/96, 2001::/32, 2002::/16), the
        # deprecated site-local ones (fec0::/10), and multicast.
        "::/96 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 "
        "2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 "
        "fec0::/10 ff00::/8".split(),
    )
)
"""The blocks that are not ordinary internet addresses, including those that routers forward."""
_UNICAST = ipaddress.ip_network("2000::/3")
"""The only part of IPv6 from which IANA assigns internet addresses."""


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and ip not in _UNICAST:
        return False
    return not any(ip in block for block in SPECIAL)


def connect_public(host: str, port: int, bounds: Bounds) -> socket.socket:
    """Connect to `host` if all addresses it resolves to are public; raises VideoError otherwise.

    The name is resolved only once, so that a hostile name server cannot give a second answer.
    """
    places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not all(is_public(str(address[0])) for *_, address in places):
        raise VideoError(
            "the video's address is not on the public internet",
            "start the server with --allow-private to permit it",
        )
    return connect_to(places, bounds)
