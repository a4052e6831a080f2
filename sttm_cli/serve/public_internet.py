"""Connections to public addresses only; the checked address is the one that is connected to."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import urllib.request
from typing import Any

from sttm_cli.base.errors import VideoError


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
        inner = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def connect(host: str, port: int, timeout: float | None) -> socket.socket:
    """Connect to `host` if all addresses it resolves to are public; raises VideoError otherwise.

    The name is resolved only once, so that a hostile name server cannot give a second answer.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not all(is_public(str(place[4][0])) for place in found):
        raise VideoError(
            "the video's address is not on the public internet",
            "start the server with --allow-private to permit it",
        )
    error: OSError | None = None
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
            return connection
        except OSError as failure:
            connection.close()
            error = failure
    raise error or OSError("no address")


class PublicConnection(http.client.HTTPConnection):
    """HTTP to public addresses."""

    def connect(self) -> None:
        self.sock = connect(self.host, self.port, self.timeout)


class PublicTLSConnection(http.client.HTTPSConnection):
    """HTTPS to public addresses; the certificate is checked against the host name."""

    def connect(self) -> None:
        plain = connect(self.host, self.port, self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


class PublicHTTPHandler(urllib.request.HTTPHandler):
    """Every request, a redirected one too, goes through a checked connection."""

    def http_open(self, req: Any) -> Any:
        return self.do_open(PublicConnection, req)


class PublicHTTPSHandler(urllib.request.HTTPSHandler):
    """The same with TLS."""

    def https_open(self, req: Any) -> Any:
        return self.do_open(PublicTLSConnection, req)
