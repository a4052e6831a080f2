"""Small files that ask for much: for memory, or for other files and addresses."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from tests.decode.made import Make


def nested(folder: Path, victim: str) -> list[Path]:
    """Files of every format that could make a reader open `victim`, a path or an address."""
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{victim}\n#EXT-X-ENDLIST\n"
    mpd = (
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet '
        f'mimeType="video/mp4"><Representation id="1"><BaseURL>{victim}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    texts = {
        "hls.m3u8": hls,
        "hls.mp4": hls,
        "marked.mp4": "\ufeff" + hls,
        "concat.mp4": f"ffconcat version 1.0\nfile '{victim}'\n",
        "concat.txt": f"\nffconcat version 1.0\nfile '{victim}'\n",
        "dash.mpd": f'<?xml version="1.0"?>{mpd}',
        "dash.mp4": f"<!-- film -->\n{mpd}",
        "list.pls": f"[playlist]\nFile1={victim}\nNumberOfEntries=1\n",
        "list.asx": f'<asx version="3.0"><entry><ref href="{victim}"/></entry></asx>',
        "list.smil": f'<smil><body><video src="{victim}"/></body></smil>',
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "reference.mov": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "reference.mov").write_bytes(_reference_movie(victim))
    return [folder / name for name in texts]


def _box(name: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), name) + content


def _reference_movie(victim: str) -> bytes:
    """A QuickTime file that is nothing but the address of another one."""
    address = victim.encode() + b"\0"
    data = struct.pack(">I4sI", 0, b"url ", len(address)) + address
    kind = _box(b"ftyp", b"qt  ", bytes(4), b"qt  ")
    return kind + _box(b"moov", _box(b"rmra", _box(b"rmda", _box(b"rdrf", data))))


def packed_header(target: Path, size: int = 0xFFFFFFF0) -> Path:
    """A QuickTime file whose header says that it unpacks to `size` bytes of zeros."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    header = _box(b"cmov", _box(b"dcom", b"zlib"), _box(b"cmvd", struct.pack(">I", size), packed))
    target.write_bytes(_box(b"ftyp", b"qt  ", bytes(4), b"qt  ") + _box(b"moov", header))
    return target


def endless_fragment(target: Path, samples: int = 0x08000000) -> Path:
    """A fragmented MP4 of a few kilobytes whose first fragment claims `samples` frames."""
    flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    data = bytearray(Make(pts=range(20), container=flags).write(target).read_bytes())
    at = data.find(b"trun")
    # No size for each: then nothing bounds their number.
    data[at + 4 : at + 12] = struct.pack(">II", 1, samples)
    target.write_bytes(data)
    return target


def huge_picture(target: Path, side: int = 65535) -> Path:
    """A GIF of a few bytes whose screen is `side` pixels wide and high."""
    screen = struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00"
    target.write_bytes(b"GIF89a" + screen + image * 3 + b"\x3b")
    return target


def growing_picture(target: Path) -> Path:
    """A stream that begins at 64x48 and goes on at 640x480."""
    small = Make(pts=range(10), size=(64, 48)).write(target.with_suffix(".small.h264"))
    large = Make(pts=range(10), size=(640, 480)).write(target.with_suffix(".large.h264"))
    target.write_bytes(small.read_bytes() + large.read_bytes())
    return target
