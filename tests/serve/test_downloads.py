"""Downloads that a server makes for a client: from where, how large, how long, and kept."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.base.errors import VideoError
from sttm_cli.decode.bounded_http import Bounds
from sttm_cli.serve import public_internet as addresses
from sttm_cli.serve.downloads import Downloads
from sttm_cli.serve.options import Options
from tests.web import Site, serving

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving(SAMPLE) as site:
        yield site


def test_a_redirect_is_checked_like_the_first_address(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _public_name(monkeypatch, {"public.test": ["93.184.216.34"]}, site.port)
    downloads = Downloads(tmp_path, Options())
    with downloads.use("http://public.test/video.mp4") as path:
        assert path.read_bytes() == site.video
    before = len(site.asked)
    for page in ("to-loopback", "to-a-file", "to-ftp"):
        with pytest.raises(VideoError), downloads.use(f"http://public.test/{page}"):
            pass
    assert site.asked[before:] == ["/to-loopback", "/to-a-file", "/to-ftp"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_with_one_private_address_is_not_connected_to(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _public_name(monkeypatch, {"mixed.test": ["93.184.216.34", "127.0.0.1"]}, site.port)
    before = list(site.asked)
    mixed = Downloads(tmp_path, Options()).use("http://mixed.test/video.mp4")
    with pytest.raises(VideoError, match="public"), mixed:
        pass
    assert site.asked == before


def test_a_name_that_resolves_to_another_address_a_moment_later_gains_nothing(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"moving.test": ["93.184.216.34"]}
    _public_name(monkeypatch, names, site.port)
    look_up, asked = addresses.socket.getaddrinfo, list[str]()

    def moving(host: str, *args: Any, **options: Any) -> Any:
        found = look_up(host, *args, **options)
        asked.append(host)
        names["moving.test"] = ["127.0.0.1"]
        return found

    monkeypatch.setattr(addresses.socket, "getaddrinfo", moving)
    # The name is resolved once for each connection: the first one goes to the checked address.
    with Downloads(tmp_path, Options()).use("http://moving.test/video.mp4") as path:
        assert path.read_bytes() == site.video
    assert asked == ["moving.test"]
    before = list(site.asked)
    again = Downloads(tmp_path, Options()).use(f"http://moving.test:{site.port}/video.mp4")
    with pytest.raises(VideoError, match="public"), again:
        pass
    assert site.asked == before


BLOCKS = (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 "
    "192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 "
    "198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32 "
    "::/128 ::1/128 ::/96 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 "
    "2001::/23 2001::/32 2001:2::/48 2001:10::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48 "
    "3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8 4000::/3 e000::/4"
).split()
BORDERS = (
    "1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 "
    "169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.1.255 "
    "192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 "
    "198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 8.8.8.8 2000:: "
    "2001:200:: 2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9:: 2003:: 2620:4f:7fff:: "
    "2620:4f:8001:: 2a00:1450::1 3ffe:ffff:: 3fff:1000::"
).split()


@pytest.mark.parametrize("block", BLOCKS)
def test_no_address_of_a_special_block_is_connected_to(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = ipaddress.ip_network(block)
    for index in (0, network.num_addresses // 2, network.num_addresses - 1):
        tried = _connected(monkeypatch, str(network[index]))
        with pytest.raises(VideoError, match="not on the public internet"):
            addresses.connect_public("name.test", 80, Bounds(seconds=1))
        assert tried == []


@pytest.mark.parametrize("address", BORDERS)
def test_addresses_beside_the_special_blocks_are_connected_to(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = _connected(monkeypatch, address)
    addresses.connect_public("name.test", 80, Bounds(seconds=1)).close()
    assert tried == [address]


def _connected(monkeypatch: pytest.MonkeyPatch, address: str) -> list[str]:
    """The addresses that are connected to from now on; every name resolves to `address`."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    place = (kind, socket.SOCK_STREAM, 6, "", (address, 80))
    tried: list[str] = []
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: [place])
    monkeypatch.setattr(socket.socket, "connect", lambda _, to: tried.append(to[0]))
    return tried


def _public_name(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]], port: int) -> None:
    """Names that resolve to public addresses, at which the test's own site answers."""
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def look_up(host: str, *args: Any, **options: Any) -> Any:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        found = [(*kind, (address, 80)) for address in names.get(host, [])]
        return found or resolve(host, *args, **options)

    def reach(self: socket.socket, address: Any) -> None:
        connect(self, ("127.0.0.1", port) if address[0] == "93.184.216.34" else address)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", reach)


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("endless", "larger"),
        ("huge", "larger"),
        ("video.mp4", "larger"),
        ("broken-off", "broke off"),
        # Each would end by itself, with another message or none.
        ("dripping", "too slow"),
        ("silent", "too slow"),
        ("dripping-head", "too slow"),
        ("dripping-chunk", "too slow"),
        ("endless-interim", "cannot be read"),
        ("endless-trailers", "cannot be read"),
        # Nothing is known of it that could be unchanged.
        ("unchanged", "answers 304"),
    ],
)
def test_downloads_are_bounded_in_size_and_time(
    tmp_path: Path, site: Site, page: str, told: str
) -> None:
    most = 1000 if page == "video.mp4" else 1 << 20
    bounds = Options(allow_private=True, max_download=most, download_timeout=0.5)
    with pytest.raises(VideoError, match=told), Downloads(tmp_path, bounds).use(site.at(page)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_not_dropped_while_its_server_is_asked_whether_it_holds(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = Options(allow_private=True, max_download=len(site.video))
    downloads, fetch = Downloads(tmp_path, bounds), Downloads._fetch
    first, *others = (site.at(f"{name}.mp4") for name in "abcd")
    with downloads.use(first):
        pass

    def unchanged(self: Downloads, address: str, *more: Any) -> bool:
        if address != first:
            return fetch(self, address, *more)
        for other in others:
            with downloads.use(other):
                pass
        return False

    monkeypatch.setattr(Downloads, "_fetch", unchanged)
    with downloads.use(first) as path:
        assert path.read_bytes() == site.video
