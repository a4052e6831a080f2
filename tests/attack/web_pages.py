"""Web pages, which yt-dlp reads: endless, compressed, slow, and naming playlists without end."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tests.attack.addresses import (
    BOMB,
    EITHER,
    RIGHT,
    START,
    Case,
    dripping,
    endless,
    head,
    length,
    once,
    whole,
)
from tests.attack.site import SILENCE, Part, Route, Site

HTML = "text/html"
HLS, DASH = "application/vnd.apple.mpegurl", "application/dash+xml"
SEGMENT = "#EXTINF:1,\n{}\n"
ENTITIES = "".join(f"<!ENTITY a{n + 1} '{f'&a{n};' * 10}'>" for n in range(9))


def page(rng: random.Random, site: Site, secret: Path) -> Case:
    """One web page; whatever it leads to, the only answer is the right one."""
    if rng.random() < 0.15:
        routes = {START: _html("<video src='/video.mp4'></video>"), "/video.mp4": once(whole(rng))}
        return Case("page of a video", routes, RIGHT, is_page=True)
    name, route, is_slow = rng.choice(list(_pages(rng, site, secret)))
    if callable(route):
        return Case(f"page, {name}", {START: route}, is_slow=is_slow, is_page=True)
    return Case(f"page, {name}", route, EITHER, is_slow=is_slow, is_page=True)


def _html(body: str) -> Route:
    data = f"<html><head><title>film</title></head><body>{body}</body></html>".encode()
    return once(head(length(data), kind=HTML) + data)


def _named(path: str, *answers: Part, kind: str) -> dict[str, Route]:
    """A page whose video is at `path`, where these are answered."""
    return {START: _html(f"<video src='{path}'></video>"), path: once(head(kind=kind), *answers)}


Pages = Iterator[tuple[str, Route | dict[str, Route], bool]]


def _pages(rng: random.Random, site: Site, secret: Path) -> Pages:
    yield "endless", endless(head(kind=HTML), b"<video src='/a.mp4'></video>"), False
    yield "endless text", endless(head(kind=HTML), b"a"), False
    yield "dripping", dripping(head(kind=HTML), b"<html>"), True
    yield "silent", once(head(kind=HTML), SILENCE), True
    for encoding, data in (("gzip", BOMB), ("gzip", gzip.compress(BOMB)), ("deflate", BOMB)):
        start = head(f"Content-Encoding: {encoding}", kind=HTML)
        yield f"bomb of {encoding}", once(start, data), False
        yield f"bombs of {encoding}", endless(start, data), False
    yield "deep JSON", _script("[" * 500_000), False
    yield "deep tags", _html("<div>" * 300_000), False
    many = "".join(f"<video src='/{n}.mp4'></video>" for n in range(5000))
    yield "many videos", {START: _html(many)}, False
    videos = json.dumps([{"@type": "VideoObject", "contentUrl": f"/{n}.mp4"} for n in range(5000)])
    yield "many objects", {START: _script(videos)}, False
    yield "itself", {START: _html(f"<iframe src='{START}'></iframe>")}, False
    yield "a refresh to itself", _html(f"<meta http-equiv=refresh content='0;url={START}'>"), False
    for scheme in (secret.as_uri(), str(secret), "ftp://127.0.0.1/a", "data:video/mp4,", "pipe:0"):
        body = f"<video src='{scheme}'></video><meta property='og:video' content='{scheme}'>"
        yield f"file {scheme[:5]}", _html(body), False
    yield from _playlists(site, secret)
    yield from _manifests(site, secret)


def _script(text: str) -> Route:
    return _html(f"<script type='application/ld+json'>{text}</script>")


def _playlists(site: Site, secret: Path) -> Pages:
    start, end = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n", "#EXT-X-ENDLIST\n"
    video = {"/v.ts": endless(head(), b"\x47" + bytes(187))}

    def hls(text: str) -> dict[str, Route]:
        return _named("/a.m3u8", text.encode(), kind=HLS) | video

    endless_list = endless(head(kind=HLS) + start.encode(), SEGMENT.format("/v.ts").encode())
    page = {START: _html("<video src='/a.m3u8'></video>")}
    yield "endless playlist", page | {"/a.m3u8": endless_list}, False
    yield "endless segment", hls(start + SEGMENT.format("/v.ts") + end), False
    yield "many segments", hls(start + SEGMENT.format("/v.ts") * 50_000 + end), False
    yield "missing segments", hls(start + SEGMENT.format("/none.ts") * 300 + end), False
    for where in (secret.as_uri(), str(secret), "ftp://127.0.0.1/a", "concat:/etc/passwd"):
        yield f"segment at {where[:5]}", hls(start + SEGMENT.format(where) * 3 + end), False
        key = f'#EXT-X-KEY:METHOD=AES-128,URI="{where}"\n'
        yield f"key at {where[:5]}", hls(start + key + SEGMENT.format("/v.ts") + end), False
    variant = "#EXT-X-STREAM-INF:BANDWIDTH=1,RESOLUTION=64x64\n{}\n"
    yield "playlist of itself", hls("#EXTM3U\n" + variant.format("/a.m3u8")), False
    yield "many playlists", hls("#EXTM3U\n" + variant.format("/a.m3u8") * 20_000), False
    live = page | {"/a.m3u8": once(head(kind=HLS) + (start + SEGMENT.format("/none.ts")).encode())}
    yield "playlist without an end", live, True


def _manifests(site: Site, secret: Path) -> Pages:
    def dash(text: str) -> dict[str, Route]:
        return _named("/a.mpd", text.encode(), kind=DASH)

    entity = f"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY a0 'aaaaaaaaaa'>{ENTITIES}]>"
    yield "bomb of entities", dash(f"{entity}<MPD>&a9;</MPD>"), False
    outer = f"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY a SYSTEM '{secret.as_uri()}'>]>"
    yield "entity of a file", dash(f"{outer}<MPD>&a;</MPD>"), False
    timeline = "<S t='0' d='1' r='2000000000'/>"
    segments = (
        "<MPD type='static' mediaPresentationDuration='PT9999999H'><Period><AdaptationSet "
        "mimeType='video/mp4'><SegmentTemplate timescale='1' media='$Number$.m4s'>"
        f"<SegmentTimeline>{timeline}</SegmentTimeline></SegmentTemplate>"
        "<Representation id='1' bandwidth='1' width='64' height='64'/></AdaptationSet></Period>"
        "</MPD>"
    )
    yield "two billion segments", dash(segments), False
