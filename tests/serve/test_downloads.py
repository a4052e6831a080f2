"""Downloads that a server makes for a client: from where, how large, how long, and kept."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.base.errors import VideoError
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
